//! Subscriptions to topics by regular expression.

use regex::bytes::{Regex, RegexBuilder};

/// The longest pattern.
const PATTERN_BYTES_MAX: usize = 4096;
/// What a compiled pattern may take in memory: a few characters can stand for very many states, and each byte of a name may cost a
/// look at all of them.
const COMPILED_BYTES_MAX: usize = 16 << 10;
/// What matching may remember of what it found out about a pattern.
const MATCHING_BYTES_MAX: usize = 64 << 10;

/// A regular expression over names of topics, in the syntax that it shares with RE2 (KIP-848). It matches whole names.
///
/// Names of topics are ASCII, and so are the classes: `\w` stands for `[0-9A-Za-z_]`; Unicode classes (`\p{…}`) are refused.
/// Matching takes time linear in the name's length, whatever the pattern.
#[derive(Clone, Debug)]
pub struct TopicPattern {
    regex: Regex,
}

/// Why a pattern cannot be used, in words for whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PatternError {
    reason: String,
}

impl TopicPattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// It is not a regular expression, is longer than 4,096 bytes, or would take more than 16 KiB of memory once compiled.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(PatternError { reason: format!("the pattern is longer than {PATTERN_BYTES_MAX} bytes") });
        }
        // On its own first: with something around it, an unbalanced parenthesis could find its other half.
        compile(pattern)?;
        Ok(Self { regex: compile(&format!(r"\A(?:{pattern})\z"))? })
    }

    /// Whether the whole name matches.
    #[must_use]
    pub fn matches(&self, topic_name: &str) -> bool {
        self.regex.is_match(topic_name.as_bytes())
    }
}

fn compile(pattern: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(MATCHING_BYTES_MAX)
        .build()
        .map_err(|error| PatternError { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_names_match() {
        for (pattern, name, expected) in [
            ("orders", "orders", true),
            ("orders", "orders-eu", false),
            ("orders", "old-orders", false),
            ("orders.*", "orders-eu", true),
            ("a|ab", "ab", true),
            ("a|ab", "abc", false),
            ("^orders$", "orders", true),
            ("(?i)ORDERS", "orders", true),
            (r"\w+-\d{2}", "orders-07", true),
            (r"\w+-\d{2}", "orders-7", false),
            (r"(?i)(eu|us|ap)-(orders|bills)[._-]v\d+([._-](dlq|retry))?", "EU-orders.v2-dlq", true),
            (r"[\w.-]{1,64}\.(created|changed|deleted)", "shop.orders.created", true),
            ("", "orders", false),
        ] {
            let matches = TopicPattern::new(pattern).map(|pattern| pattern.matches(name));
            assert_eq!(matches, Ok(expected), "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_or_too_large_is_refused() {
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        let deep = format!("{}a{}", "(".repeat(2_000), ")".repeat(2_000));
        for pattern in [
            "(",
            "a)(?:b",
            "[z-a]",
            "a{100000}",
            "((a{100}){100}){100}",
            "(.{0,64}){16}x",
            r"(a)\1",
            "a(?=b)",
            &long,
            &deep,
        ] {
            let error = TopicPattern::new(pattern).map(|_| ()).expect_err(pattern);
            assert!(!error.to_string().is_empty());
        }
    }
}
