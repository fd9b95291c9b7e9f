//! `firn datasets`: prepared snapshots.

use std::path::PathBuf;

use anyhow::{Result, anyhow, ensure};
use firn_data_prep::{HashedRow, hash_rows};
use firn_kit::Channel;
use firn_proto::dataprep::v1::data_prep_service_client::DataPrepServiceClient;
use firn_proto::dataprep::v1::{ContainsRowsRequest, GetSnapshotRequest, ListSnapshotsRequest, RowSide, Snapshot};
use serde_json::json;

use crate::clients::{Endpoints, pages, request};

/// Rows of one question.
const AT_ONCE: usize = 10_000;

/// Lists and shows dataset snapshots, and says whether rows were trained on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn datasets list\n  firn datasets show datasets/offers/snapshots/0123456789abcdef\n  \
                  firn datasets contains datasets/offers/snapshots/0123456789abcdef --data-path rows.csv"
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
    /// Says of each row of a file whether it was trained on, held out, or is absent. Only hashes are sent.
    Contains {
        /// Name, `datasets/…/snapshots/…`.
        name: String,
        /// CSV, JSONL or Parquet with the same columns as the rows that were prepared, or a folder of such files.
        #[arg(long, value_name = "PATH", conflicts_with = "sha256")]
        data_path: Option<PathBuf>,
        /// Hash of a row, as a snapshot keeps it; may be given more than once.
        #[arg(long, value_name = "HEX")]
        sha256: Vec<String>,
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
        What::Contains { name, data_path, sha256 } => {
            let rows = match data_path {
                Some(path) => {
                    let (path, mut rows) = (path.clone(), Vec::new());
                    tokio::task::spawn_blocking(move || hash_rows(&path, |row| rows.push(row)).map(|()| rows))
                        .await?
                        .map_err(|error| anyhow!(error))?
                }
                None => {
                    let given = |(at, hash): (usize, &String)| HashedRow {
                        file: "--sha256".to_owned(),
                        row: at + 1,
                        sha256: hash.clone(),
                    };
                    sha256.iter().enumerate().map(given).collect()
                }
            };
            ensure!(!rows.is_empty(), "which rows? Give --data-path or --sha256");
            contains(&mut client, name, &rows, args.json).await?;
        }
    }
    Ok(())
}

/// Asks for all rows, in parts, and prints a line each.
async fn contains(
    client: &mut DataPrepServiceClient<Channel>,
    name: &str,
    rows: &[HashedRow],
    as_json: bool,
) -> Result<()> {
    for rows in rows.chunks(AT_ONCE) {
        let sha256 = rows.iter().map(|row| row.sha256.clone()).collect();
        let answer = client.contains_rows(request(ContainsRowsRequest { name: name.to_owned(), sha256 })).await?;
        for (row, side) in rows.iter().zip(answer.get_ref().sides()) {
            let side = match side {
                RowSide::Train => "train",
                RowSide::HeldOut => "held_out",
                RowSide::Absent | RowSide::Unspecified => "absent",
            };
            if as_json {
                println!("{}", json!({ "file": row.file, "row": row.row, "sha256": row.sha256, "side": side }));
            } else {
                println!("{side:<8}  row {} of {}  {}", row.row, row.file, row.sha256);
            }
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
