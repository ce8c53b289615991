//! `lockstep group`.

mod describe;
mod explain;
mod reset;
mod transfer;

use std::io::{self, Write};

use clap::Subcommand;
use lockstep_client::{Admin, Client};

use self::reset::ResetArguments;
use self::transfer::ImportArguments;
use super::output::{Table, age, or_dash, print_json, visible};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Lists groups of both protocols
    List {
        /// Add how far each is behind, in records and in time
        #[arg(long)]
        lag: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows a group's members, offsets and lag
    Describe {
        /// Group
        group: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tells why a group rebalanced: who came and went, what moved, how long it took
    Explain {
        /// Group
        group: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Moves the committed offsets of a group that has no members
    Reset(ResetArguments),
    /// Deletes a group that has no members, with its committed offsets
    Delete {
        /// Group
        group: String,
    },
    /// Writes a group's committed offsets to standard output, as JSON
    Export {
        /// Group
        group: String,
    },
    /// Commits the offsets of an export for a group that has no members or does not exist
    Import(ImportArguments),
}

pub(crate) async fn run(client: &Client, command: GroupCommand) -> anyhow::Result<()> {
    let admin = Admin::new(client);
    match command {
        GroupCommand::List { lag: false, json } => {
            let groups = admin.list_groups().await?;
            if json {
                return print_json(&groups);
            }
            let mut table = Table::new(&["GROUP", "TYPE", "STATE"]);
            for group in groups {
                table.row(vec![group.group_id, group.group_type, group.state]);
            }
            table.print()?;
        }
        GroupCommand::List { lag: true, json } => {
            let groups = admin.list_groups_with_lag().await?;
            if json {
                return print_json(&groups);
            }
            let mut table = Table::new(&["GROUP", "TYPE", "STATE", "PARTITIONS", "UNKNOWN", "LAG", "LAG TIME"]);
            for listing in groups {
                table.row(vec![
                    listing.group.group_id,
                    listing.group.group_type,
                    listing.group.state,
                    or_dash(listing.partitions),
                    or_dash(listing.partitions_unknown),
                    or_dash(listing.lag),
                    or_dash(listing.lag_ms.map(age)),
                ]);
            }
            table.print()?;
        }
        GroupCommand::Describe { group, json } => {
            let group = admin.describe_group(&group).await?;
            if json {
                return print_json(&group);
            }
            describe::print(&group)?;
        }
        GroupCommand::Explain { group, json } => {
            let timeline = admin.explain_group(&group).await?;
            if json {
                return print_json(&timeline);
            }
            explain::print(&timeline)?;
        }
        GroupCommand::Reset(arguments) => reset::run(&admin, arguments).await?,
        GroupCommand::Delete { group } => {
            admin.delete_group(&group).await?;
            writeln!(io::stdout(), "deleted group {}", visible(&group))?;
        }
        GroupCommand::Export { group } => print_json(&admin.export_group(&group).await?)?,
        GroupCommand::Import(arguments) => transfer::import(&admin, arguments).await?,
    }
    Ok(())
}
