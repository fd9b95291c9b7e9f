//! `firn models`: what the registry keeps and what is served.

use std::time::Duration;

use anyhow::Result;
use firn_proto::inference::v1::{
    ListModelsRequest as ServedRequest, LoadModelRequest, ServedModel, UnloadModelRequest,
};
use firn_proto::registry::v1::{
    Alias, GetVersionRequest, ListModelsRequest, ListVersionsRequest, Model, SetAliasRequest, Version,
};
use serde_json::json;

use crate::clients::{Endpoints, pages, request, request_within};

/// Longest that a version may take to come from the stage.
const LOAD_TIME: Duration = Duration::from_secs(600);

/// Lists models and versions, moves aliases, tells what is served.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn models list\n  firn models show offers\n  firn models alias offers best 3\n  firn models served\n  \
                        firn models load offers@3"
)]
pub(crate) struct ModelsArgs {
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
    /// All models.
    List,
    /// The versions of a model.
    Show {
        /// Model's name.
        model: String,
    },
    /// Points an alias to a version.
    Alias {
        /// Model's name.
        model: String,
        /// Alias.
        alias: String,
        /// Version's number.
        version: u64,
    },
    /// What inference answers for now.
    Served,
    /// Has inference serve a version that no alias names, or what a job has saved.
    Load {
        /// `offers@3`, or `job-…@50` for the checkpoint of step 50.
        id: String,
    },
    /// Takes back what was loaded.
    Unload {
        /// As it was loaded.
        id: String,
    },
}

/// Runs the command.
pub(crate) async fn run(args: &ModelsArgs) -> Result<()> {
    let mut client = args.endpoints.registry()?;
    match &args.what {
        What::List => {
            let page = async |page_token| {
                let message = ListModelsRequest { page_size: 0, page_token };
                let page = client.list_models(request(message)).await?.into_inner();
                Ok((page.models, page.next_page_token))
            };
            pages(page, |model| print_model(&model, args.json)).await?;
        }
        What::Show { model } => {
            let parent = format!("models/{}", model.trim_start_matches("models/"));
            let page = async |page_token| {
                let message = ListVersionsRequest { parent: parent.clone(), page_size: 0, page_token };
                let page = client.list_versions(request(message)).await?.into_inner();
                Ok((page.versions, page.next_page_token))
            };
            pages(page, |version| print(&version, args.json)).await?;
        }
        What::Alias { model, alias, version } => {
            let model = model.trim_start_matches("models/");
            let name = format!("models/{model}/aliases/{alias}");
            client.set_alias(request(SetAliasRequest { name: name.clone(), version: *version })).await?;
            let version = client.get_version(request(GetVersionRequest { name })).await?.into_inner();
            print(&version, args.json);
        }
        What::Load { id } => {
            let message = LoadModelRequest { id: id.clone() };
            let model = args.endpoints.inference()?.load_model(request_within(message, LOAD_TIME)).await?.into_inner();
            print_served(&model, args.json);
        }
        What::Unload { id } => {
            args.endpoints.inference()?.unload_model(request(UnloadModelRequest { id: id.clone() })).await?;
        }
        What::Served => {
            let served = args.endpoints.inference()?.list_models(request(ServedRequest {})).await?.into_inner();
            served.models.iter().for_each(|model| print_served(model, args.json));
        }
    }
    Ok(())
}

fn print_served(model: &ServedModel, as_json: bool) {
    let ServedModel { id, version, parent, loaded, .. } = model;
    if as_json {
        println!("{}", json!({ "id": id, "version": version, "parent": parent, "loaded": loaded }));
    } else {
        println!("{id:<32} {version}{}", if *loaded { "  (loaded)" } else { "" });
    }
}

fn print_model(model: &Model, as_json: bool) {
    let alias = |alias: &Alias| format!("{}→{}", alias.name.rsplit('/').next().unwrap_or_default(), alias.version);
    let aliases: Vec<String> = model.aliases.iter().map(alias).collect();
    if as_json {
        println!("{}", json!({ "name": model.name, "versions": model.versions, "aliases": aliases }));
    } else {
        println!("{}  {} versions  {}", model.name, model.versions, aliases.join(" "));
    }
}

fn print(version: &Version, as_json: bool) {
    let metrics: serde_json::Map<_, _> =
        version.metrics.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    if as_json {
        println!(
            "{}",
            json!({
                "name": version.name, "path": version.path, "aliases": version.aliases, "metrics": metrics,
                "files": version.files.iter().map(|file| &file.path).collect::<Vec<_>>(),
            })
        );
        return;
    }
    println!("{}  [{}]  {}", version.name, version.aliases.join(", "), version.path);
    let mut names: Vec<_> = version.metrics.iter().collect();
    names.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in names {
        println!("    {name:<30} {}", number(*value));
    }
}

/// Four digits behind the point, or the size of what is smaller.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.1e}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn small_numbers_keep_their_size() {
        let shown = [0.0, 2.5, 0.001, 1.239e-5, -2e-4].map(number);
        assert_eq!(shown, ["0.0000", "2.5000", "0.0010", "1.2e-5", "-2.0e-4"]);
    }
}
