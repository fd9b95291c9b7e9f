//! `firn datasets`: prepared snapshots.

use anyhow::Result;
use firn_proto::dataprep::v1::{GetSnapshotRequest, ListSnapshotsRequest, Snapshot};
use serde_json::json;

use crate::clients::{Endpoints, pages, request};

/// Lists and shows dataset snapshots.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn datasets list\n  firn datasets show datasets/offers/snapshots/0123456789abcdef"
)]
pub(crate) struct DatasetsArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    endpoints: Endpoints,
    /// Print JSON, an object a line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// All snapshots, oldest first.
    List,
    /// One snapshot.
    Show {
        /// Name, `datasets/…/snapshots/…`.
        name: String,
    },
}

/// Runs the command.
pub(crate) async fn run(args: &DatasetsArgs) -> Result<()> {
    let mut client = args.endpoints.data_prep()?;
    match &args.what {
        What::List => {
            let page = async |page_token| {
                let message = ListSnapshotsRequest { page_size: 0, page_token };
                let page = client.list_snapshots(request(message)).await?.into_inner();
                Ok((page.snapshots, page.next_page_token))
            };
            pages(page, |snapshot| print(&snapshot, args.json)).await?;
        }
        What::Show { name } => {
            let message = GetSnapshotRequest { name: name.clone() };
            print(&client.get_snapshot(request(message)).await?.into_inner(), args.json);
        }
    }
    Ok(())
}

fn print(snapshot: &Snapshot, as_json: bool) {
    let state = snapshot.state().as_str_name().trim_start_matches("SNAPSHOT_STATE_").to_lowercase();
    if as_json {
        println!(
            "{}",
            json!({
                "name": snapshot.name, "state": state, "path": snapshot.path, "rows": snapshot.rows,
                "train_rows": snapshot.train_rows, "held_out_rows": snapshot.held_out_rows,
                "train_tokens": snapshot.train_tokens, "completion_tokens": snapshot.completion_tokens,
                "truncated_rows": snapshot.truncated_rows, "duplicate_rows": snapshot.duplicate_rows,
                "template_sha256": snapshot.template_sha256, "error": snapshot.error,
            })
        );
    } else {
        println!(
            "{}  {state}  {} rows ({} held out), {} tokens  {}",
            snapshot.name, snapshot.rows, snapshot.held_out_rows, snapshot.train_tokens, snapshot.error
        );
    }
}
