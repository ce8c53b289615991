//! `lockstep group import`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use lockstep_client::{Admin, GroupExport};

use super::reset;

/// Longer files are not exports.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What is imported, and for which group.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// A file that `lockstep group export` wrote; - for standard input
    file: PathBuf,
    /// Group, if it is not the one that was exported; it must have no members
    #[arg(long)]
    group: Option<String>,
    /// Change nothing, only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn import(admin: &Admin, arguments: ImportArguments) -> anyhow::Result<()> {
    let name = arguments.file.display().to_string();
    let document = read(&arguments.file).with_context(|| name.clone())?;
    let mut export = GroupExport::from_json(&document).with_context(|| name)?;
    if let Some(group) = arguments.group {
        export.group_id = group;
    }
    let changes = admin.import_group(&export, arguments.dry_run).await?;
    reset::print(&export.group_id, arguments.dry_run, &changes, arguments.json)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut document = Vec::new();
    let from: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(File::open(path)?) };
    from.take(FILE_BYTES_MAX + 1).read_to_end(&mut document)?;
    ensure!(document.len() as u64 <= FILE_BYTES_MAX, "longer than {FILE_BYTES_MAX} bytes");
    Ok(document)
}
