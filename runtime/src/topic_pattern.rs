//! Subscriptions to topics by regular expression.

use regex::bytes::{Regex, RegexBuilder};

/// The longest pattern.
const PATTERN_BYTES_MAX: usize = 4096;
/// What a compiled pattern may take in memory: a few characters can stand for very many states, and each byte of a name may cost a
/// look at all of them.
const COMPILED_BYTES_MAX: usize = 16 << 10;
/// And for each byte of the pattern: a list of names takes so much, and how long it may be is bounded already.
const COMPILED_BYTES_PER_BYTE: usize = 48;
/// What matching may remember of what it found out about a pattern.
const MATCHING_BYTES_MAX: usize = 64 << 10;

/// A regular expression over names of topics, in the syntax of RE2/J (KIP-848). It matches whole names.
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
    /// It is not a regular expression, is longer than 4,096 bytes, or would take more memory once compiled than 16 KiB and 48 bytes for
    /// each byte of it.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(PatternError { reason: format!("the pattern is longer than {PATTERN_BYTES_MAX} bytes") });
        }
        let compiled_bytes_max = COMPILED_BYTES_MAX + COMPILED_BYTES_PER_BYTE * pattern.len();
        let pattern = respell(pattern);
        // On its own first: with something around it, an unbalanced parenthesis could find its other half.
        compile(&pattern, compiled_bytes_max)?;
        Ok(Self { regex: compile(&format!(r"\A(?:{pattern})\z"), compiled_bytes_max)? })
    }

    /// Whether the whole name matches.
    #[must_use]
    pub fn matches(&self, topic_name: &str) -> bool {
        self.regex.is_match(topic_name.as_bytes())
    }
}

/// Says what only RE2/J knows, or what it means differently, in the words of the `regex` crate: `\Q…\E`, octal escapes, and characters
/// that are nothing special in a class. What is wrong stays wrong.
fn respell(pattern: &str) -> String {
    let mut respelt = String::with_capacity(pattern.len());
    let mut rest = pattern;
    let mut in_class = false;
    while let Some(character) = rest.chars().next() {
        let after = &rest[character.len_utf8()..];
        rest = after;
        match character {
            '\\' if !in_class && after.starts_with('Q') => {
                let (quoted, behind) = after[1..].split_once(r"\E").unwrap_or((&after[1..], ""));
                respelt.push_str(&regex::escape(quoted));
                rest = behind;
            }
            '\\' => match octal(after) {
                Some((code, digits)) => {
                    respelt.push_str(&format!(r"\x{{{code:X}}}"));
                    rest = &after[digits..];
                }
                None => {
                    respelt.push('\\');
                    let escaped = after.chars().next();
                    respelt.extend(escaped);
                    rest = &after[escaped.map_or(0, char::len_utf8)..];
                }
            },
            '[' if !in_class => {
                in_class = true;
                // What comes first in a class is part of it, be it the bracket that ends it.
                let negated = if after.starts_with('^') { "^" } else { "" };
                respelt.push('[');
                respelt.push_str(negated);
                rest = &after[negated.len()..];
                if rest.starts_with(']') {
                    respelt.push_str(r"\]");
                    rest = &rest[1..];
                }
            }
            '[' => match after.strip_prefix(':').and_then(|named| named.split_once(":]")) {
                Some((name, behind)) => {
                    respelt.push_str(&format!("[:{name}:]"));
                    rest = behind;
                }
                None => respelt.push_str(r"\["),
            },
            ']' if in_class => {
                in_class = false;
                respelt.push(']');
            }
            '&' | '~' if in_class => respelt.extend(['\\', character]),
            _ => respelt.push(character),
        }
    }
    respelt
}

/// The character of an octal escape, and how many digits it has. One digit that is not 0 is a reference to a group, which no pattern
/// may have.
fn octal(escape: &str) -> Option<(u32, usize)> {
    let digits = escape.bytes().take(3).take_while(|digit| (b'0'..=b'7').contains(digit)).count();
    let code = u32::from_str_radix(escape.get(..digits)?, 8).ok()?;
    (digits > 1 || escape.starts_with('0')).then_some((code, digits))
}

fn compile(pattern: &str, compiled_bytes_max: usize) -> Result<Regex, PatternError> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(compiled_bytes_max)
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
            (r"\Qorders.v2\E", "orders.v2", true),
            (r"\Qorders.v2\E", "orders-v2", false),
            (r"\Qorders.v\E\d+|\Qbills.", "orders.v23", true),
            (r"\Qorders.v\E\d+|\Qbills.", "bills.", true),
            (r"\Qa\\E.b", "a.b", false),
            (r"\157rders", "orders", true),
            (r"[\141-\143]\055\0612", "b-12", true),
            (r"a\_b\-c", "a_b-c", true),
            (r"\\Qa", "Qa", false),
            (r"[^\]Q]\Q]\E?", "a", true),
            (r"[]a]\Q.\E[^]a]", "].b", true),
            (r"[[a]b[&&.]", "ab.", true),
            (r"[[:alpha:]&&x]+", "abc", true),
            ("", "orders", false),
        ] {
            let matches = TopicPattern::new(pattern).map(|pattern| pattern.matches(name));
            assert_eq!(matches, Ok(expected), "{pattern} {name}");
        }
    }

    #[test]
    fn as_many_names_as_fit_into_a_pattern_may_be_listed() {
        let names: Vec<String> = (0..455_u32).map(|i| format!("orders{i:04}")).collect();
        let pattern = names.join("|");
        let longest: String = pattern.chars().cycle().take(PATTERN_BYTES_MAX - 1).chain(['x']).collect();
        let distinct = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-";
        let one: String = distinct.chars().cycle().take(PATTERN_BYTES_MAX).collect();
        for (pattern, name) in [(&longest, &names[200]), (&one, &one)] {
            assert_eq!(pattern.len(), PATTERN_BYTES_MAX);
            assert_eq!(TopicPattern::new(pattern).map(|pattern| pattern.matches(name)), Ok(true));
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
            r"(a)\18",
            r"[\Qa\E]",
            r"a\8",
            r"a\",
            r"[a",
            r"[[:alpha:]",
            r"(\Q)",
            r"orders\E",
            "a(?=b)",
            &long,
            &deep,
        ] {
            let error = TopicPattern::new(pattern).map(|_| ()).expect_err(pattern);
            assert!(!error.to_string().is_empty());
        }
    }
}
