//! `lockstep group reset`.

use std::collections::BTreeSet;
use std::io::{self, Write};

use clap::Args;
use lockstep_client::{Admin, OffsetChange, ResetTo, TopicSelection};
use serde::Serialize;

use crate::cli::output::{Table, or_dash, print_json, visible};

/// More partitions than a topic can have.
const PARTITION_MAX: i32 = 1_000_000;

/// Which offsets, and where to.
#[derive(Debug, Args)]
pub(crate) struct ResetArguments {
    /// Group; it must have no members
    group: String,
    /// `earliest`, `latest`, an offset, `-N` for N records back, or a time: RFC 3339 such as 2026-03-01T12:00:00Z, or
    /// @MILLISECONDS since 1970
    #[arg(long, value_parser = parse_to, allow_hyphen_values = true)]
    to: ResetTo,
    /// Topic, or some of its partitions: orders or orders:0,3-5; may be given several times. Without it, everything that
    /// the group has committed offsets for
    #[arg(long, value_name = "TOPIC[:PARTITIONS]", value_parser = parse_selection)]
    topic: Vec<TopicSelection>,
    /// Change nothing, only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(admin: &Admin, arguments: ResetArguments) -> anyhow::Result<()> {
    let ResetArguments { group, to, topic, dry_run, json } = arguments;
    let changes = admin.reset_offsets(&group, to, &topic, dry_run).await?;
    print(&group, dry_run, &changes, json)
}

/// What was done to offsets, or would be.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    group_id: &'a str,
    dry_run: bool,
    offsets: &'a [OffsetChange],
}

pub(super) fn print(group: &str, dry_run: bool, changes: &[OffsetChange], json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&Outcome { group_id: group, dry_run, offsets: changes });
    }
    let mut table = Table::new(&["TOPIC", "PARTITION", "OLD", "", "NEW", "START", "END"]);
    for change in changes {
        table.row(vec![
            change.at.topic.to_string(),
            change.at.partition.to_string(),
            or_dash(change.old),
            "→".to_owned(),
            change.new.to_string(),
            change.start.to_string(),
            change.end.to_string(),
        ]);
    }
    table.print()?;
    let outcome = if dry_run { "nothing was changed" } else { "committed" };
    writeln!(io::stdout(), "group {}: {outcome}", visible(group))?;
    Ok(())
}

fn parse_to(text: &str) -> Result<ResetTo, String> {
    let number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<i64>().ok());
    let parsed = match text {
        "" => None,
        "earliest" => Some(ResetTo::Earliest),
        "latest" => Some(ResetTo::Latest),
        _ => {
            match (text.strip_prefix('@'), text.strip_prefix('-')) {
                (Some(digits), _) => number(digits).flatten().map(ResetTo::Time),
                (_, Some(digits)) => number(digits).flatten().map(|count| ResetTo::Back(count.unsigned_abs())),
                _ => match number(text) {
                    Some(offset) => offset.map(ResetTo::Offset),
                    None => {
                        let time: jiff::Timestamp = text.parse().map_err(|error| {
                        format!("neither earliest, latest, OFFSET, -N, @MILLISECONDS nor a time with its offset: {error}")
                    })?;
                        let since_1970 = time.as_millisecond();
                        (since_1970 >= 0).then_some(ResetTo::Time(since_1970))
                    }
                },
            }
        }
    };
    parsed.ok_or_else(|| "a number that is too large or missing, or a time before 1970".to_owned())
}

fn parse_selection(text: &str) -> Result<TopicSelection, String> {
    let Some((topic, list)) = text.split_once(':') else {
        return named(text, None);
    };
    let mut partitions = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let index = |text: &str| {
            let index = text.parse().ok().filter(|index| (0..PARTITION_MAX).contains(index));
            index.ok_or_else(|| format!("`{text}` is not the number of a partition"))
        };
        let (first, last): (i32, i32) = (index(first)?, index(last)?);
        if first > last {
            return Err(format!("`{part}` ends before it begins"));
        }
        partitions.extend(first..=last);
    }
    named(topic, Some(partitions))
}

fn named(topic: &str, partitions: Option<BTreeSet<i32>>) -> Result<TopicSelection, String> {
    if topic.is_empty() {
        return Err("the topic's name is missing".to_owned());
    }
    Ok(TopicSelection { topic: topic.to_owned(), partitions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_understood_in_every_form() {
        for (text, to) in [
            ("earliest", ResetTo::Earliest),
            ("latest", ResetTo::Latest),
            ("0", ResetTo::Offset(0)),
            ("9223372036854775807", ResetTo::Offset(i64::MAX)),
            ("-10", ResetTo::Back(10)),
            ("@1700000000123", ResetTo::Time(1_700_000_000_123)),
            ("2023-11-14T22:13:20.123Z", ResetTo::Time(1_700_000_000_123)),
            ("2023-11-14T23:13:20+01:00", ResetTo::Time(1_700_000_000_000)),
        ] {
            assert_eq!(parse_to(text), Ok(to), "{text}");
        }
        for text in [
            "",
            "-",
            "@",
            "--1",
            "+1",
            "1.5",
            "now",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "1969-01-01T00:00:00Z",
            "9223372036854775808",
            "-99999999999999999999",
            "@-1",
            "@1s",
        ] {
            assert!(parse_to(text).is_err(), "{text}");
        }
    }

    #[test]
    fn topics_may_be_narrowed_to_partitions() {
        let selection = |topic: &str, partitions: Option<&[i32]>| TopicSelection {
            topic: topic.to_owned(),
            partitions: partitions.map(|partitions| partitions.iter().copied().collect()),
        };
        assert_eq!(parse_selection("orders"), Ok(selection("orders", None)));
        assert_eq!(parse_selection("orders:3"), Ok(selection("orders", Some(&[3]))));
        assert_eq!(parse_selection("orders:0,3-5,4"), Ok(selection("orders", Some(&[0, 3, 4, 5]))));
        for text in ["", ":1", "orders:", "orders:a", "orders:-1", "orders:5-3", "orders:1,", "orders:0-99999999999"] {
            assert!(parse_selection(text).is_err(), "{text}");
        }
    }
}
