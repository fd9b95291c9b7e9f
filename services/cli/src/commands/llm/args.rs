//! The flags of `firn llm`.

use std::num::NonZeroU64;
use std::path::PathBuf;

use firn_llm::device::DeviceSpec;
use firn_llm::template::KnownTemplate;
use firn_proto::trainer::v1::Objective;
use firn_trainer::hub::HubOptions;

use crate::base;
use crate::clients::Endpoints;

/// Fine-tunes a model on a table of your own, with AutoTrain's flags (hyphens or underscores).
#[derive(Debug, clap::Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  firn llm --train --project-name out --data-path rows.csv --text-column text --epochs 3\n  \
    firn llm --train --project-name out --data-path offers.csv \\\n    \
    --prompt-template 'Describe this offer.\\n{{ row | tojson }}' --completion-template '{{ DESCRIPTION }}'\n  \
    firn llm --train --trainer dpo --project-name out --data-path votes.jsonl --quantization int4\n  \
    firn llm --train --project-name out --data-path rows.csv --dry-run\n  \
    firn llm --config run.yml --epochs 1\n\n\
    Rows are told by their columns: text; prompt, completion; messages; prompt, chosen, rejected; input_ids, labels;\n\
    prompt_ids, chosen_ids, rejected_ids.\n\n\
    The result, a PEFT folder, lies in the folder --project-name, and in the registry of --stage."
)]
pub(crate) struct LlmArgs {
    /// Train; the one thing that this command does.
    #[arg(long)]
    pub(super) train: bool,
    /// AutoTrain's YAML configuration; flags of the command line count more.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Like AutoTrain's run of the tutorial: adapters on q_proj and v_proj with dropout 0.05, all rows joined and cut at
    /// 1024 tokens.
    #[arg(long)]
    pub(super) parity: bool,
    /// Say what would be done, what it would take and what stands out in the rows, without a step. `firn lint` needs no
    /// stack for the rows alone.
    #[arg(long, conflicts_with = "resume")]
    pub(super) dry_run: bool,
    /// Go on with the last job of this project that has not ended.
    #[arg(long)]
    pub(super) resume: bool,
    /// Folder for the result; its last part names the model in the registry.
    #[arg(long, value_name = "FOLDER")]
    pub(super) project_name: PathBuf,
    /// Base checkpoint: a folder, a path on the stage, or org/name on the hub, pulled to the stage once. Default: the bundled
    /// base.
    #[arg(long, default_value = base::BUNDLED, value_name = "FOLDER")]
    pub(super) model: String,
    #[command(flatten)]
    pub(super) rows: RowArgs,
    /// What is learnt from.
    #[arg(long, value_enum, default_value_t)]
    pub(super) trainer: Trainer,
    /// Train an adapter. All trainers but default always do.
    #[arg(long)]
    pub(super) peft: bool,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 16)]
    pub(super) lora_r: u32,
    /// The adapter's output is scaled by alpha / r.
    #[arg(long, default_value_t = 32.0)]
    pub(super) lora_alpha: f32,
    /// Share of a layer's inputs that the adapter does not see in a step.
    #[arg(long, default_value_t = 0.0)]
    pub(super) lora_dropout: f32,
    /// Scale the adapter by alpha / √r.
    #[arg(long)]
    pub(super) use_rslora: bool,
    /// all-linear, or names such as q_proj,v_proj.
    #[arg(long, default_value = "all-linear", value_delimiter = ',', value_name = "NAMES")]
    pub(super) target_modules: Vec<String>,
    /// Go on from the adapter in this PEFT folder; its rank, scale and targets count.
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Keep the frozen base as none, int8, int4 (NF4) or int4-double.
    #[arg(long, default_value = "none")]
    pub(super) quantization: String,
    /// Write the adapter folded into the base too, to the folder merged in --project-name, with a proof.
    #[arg(long, conflicts_with = "remote")]
    pub(super) merge_adapter: bool,
    /// Strength of the pull to the reference (dpo), or weight of the odds (orpo).
    #[arg(long, default_value_t = 0.1)]
    pub(super) dpo_beta: f64,
    /// Highest learning rate.
    #[arg(long)]
    pub(super) lr: Option<f64>,
    /// Passes over the rows.
    #[arg(long, default_value_t = 3.0)]
    pub(super) epochs: f64,
    /// Compute fewer blocks at once if the memory does not suffice, and layers again in the backward if it still does not. On
    /// a CPU the result stays the same; on a GPU, where blocks are joined, its last bits may differ.
    #[arg(long)]
    pub(super) auto_find_batch_size: bool,
    /// Never compute a layer again in the backward. Without this it is done where the memory asks for it: always on a GPU,
    /// with --auto-find-batch-size on a CPU.
    #[arg(long)]
    pub(super) disable_gradient_checkpointing: bool,
    /// Packed blocks of a batch.
    #[arg(long, default_value_t = 4)]
    pub(super) batch_size: u32,
    /// Batches whose gradients are added before an update.
    #[arg(long, default_value_t = 1)]
    pub(super) gradient_accumulation: u32,
    /// Tokens of a packed block.
    #[arg(long, default_value_t = 512)]
    pub(super) block_size: u32,
    /// bfd packs whole rows, none gives each row a block, wrapped joins all rows and cuts them.
    #[arg(long, default_value = "bfd")]
    pub(super) packing: String,
    /// Share of the steps with rising learning rate.
    #[arg(long, default_value_t = 0.1)]
    pub(super) warmup_ratio: f64,
    /// linear, cosine or constant.
    #[arg(long, default_value = "linear")]
    pub(super) scheduler: String,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub(super) weight_decay: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    #[arg(long, default_value_t = 1.0)]
    pub(super) max_grad_norm: f64,
    /// Seed of initialisation, order and split.
    #[arg(long, default_value_t = 42)]
    pub(super) seed: u64,
    /// Keep the rows in file order.
    #[arg(long)]
    pub(super) no_shuffle: bool,
    /// Steps from one checkpoint to the next: what a crash costs at most.
    #[arg(long, conflicts_with = "remote")]
    pub(super) checkpoint_steps: Option<NonZeroU64>,
    /// Stop after so many seconds of steps.
    #[arg(long, default_value_t = 0.0)]
    pub(super) budget_seconds: f64,
    /// When held-out rows are measured: epoch, steps (every --eval-steps) or no.
    #[arg(long, default_value = "epoch")]
    pub(super) eval_strategy: String,
    /// Steps from one measurement to the next.
    #[arg(long, default_value_t = 0)]
    pub(super) eval_steps: u32,
    /// End after so many measurements without a lower loss; 0: never.
    #[arg(long, default_value_t = 0)]
    pub(super) early_stopping_patience: u32,
    /// By how much a loss must be lower to count.
    #[arg(long, default_value_t = 0.0)]
    pub(super) early_stopping_threshold: f64,
    /// Keep the weights of the best measurement instead of the last ones.
    #[arg(long)]
    pub(super) load_best_model_at_end: bool,
    /// Rows that are measured, not trained on.
    #[arg(long, default_value_t = 0)]
    pub(super) held_out_rows: u32,
    /// Held-out rows that are answered, for field_recall.
    #[arg(long, default_value_t = 0)]
    pub(super) answered_rows: u32,
    /// Folder for everything that is made.
    #[arg(long, default_value = "stage", value_name = "FOLDER")]
    pub(super) stage: String,
    /// auto, cpu, cuda:N, cuda:N:f32, cuda:N-M (GPUs N to M together, for an adapter) or vulkan. A GPU's compiled kernels are kept
    /// in the folder FIRN_KERNEL_CACHE, by default ~/.cache/firn/kernels.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    pub(super) device: DeviceSpec,
    /// Use the running stack at --trainer-endpoint and --registry-endpoint instead of one in this process.
    #[arg(long)]
    pub(super) remote: bool,
    #[command(flatten)]
    pub(super) hub: HubOptions,
    #[command(flatten)]
    pub(super) endpoints: Endpoints,
    /// Print a JSON line a step, and a last one with the result.
    #[arg(long)]
    pub(super) json: bool,
}

/// Rows, and how they become tokens.
#[derive(Debug, clap::Args)]
pub(crate) struct RowArgs {
    /// CSV, JSONL or Parquet, or a folder: its file train.csv, train.jsonl or train.parquet, else all of its files.
    #[arg(long, visible_alias = "data", value_name = "PATH")]
    pub(crate) data_path: Option<PathBuf>,
    /// Name of the file in a folder, without its ending.
    #[arg(long, default_value = "train", value_name = "NAME")]
    pub(crate) train_split: String,
    /// Name of the file in the folder whose rows are measured, not trained on.
    #[arg(long, value_name = "NAME")]
    pub(crate) valid_split: Option<String>,
    /// Column with ready-made text, trained on whole; for preferences, with the chosen answer. Default: as the columns'
    /// names say.
    #[arg(long, value_name = "COLUMN", conflicts_with = "prompt_template")]
    pub(crate) text_column: Option<String>,
    /// Column with the prompt, for preferences.
    #[arg(long, default_value = "prompt", value_name = "COLUMN")]
    pub(crate) prompt_text_column: String,
    /// Column with the rejected answer, for preferences.
    #[arg(long, default_value = "rejected", value_name = "COLUMN")]
    pub(crate) rejected_text_column: String,
    /// Jinja over the row: `row` is all of it, each column has its name. `\n` is a new line.
    #[arg(long, value_name = "JINJA", requires = "completion_template")]
    pub(crate) prompt_template: Option<String>,
    /// Jinja for the answer.
    #[arg(long, value_name = "JINJA", requires = "prompt_template")]
    pub(crate) completion_template: Option<String>,
    /// Template of chats, in training as in serving: the base's own (tokenizer; none says the same), chatml, or zephyr. Any
    /// other goes into the base's folder as chat_template.jinja.
    #[arg(long, default_value = "tokenizer", value_name = "NAME", value_parser = template, hide_default_value = true)]
    pub(crate) chat_template: Template,
    /// System message before the prompt.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) system: String,
    /// Tokens of a row; longer ones are cut.
    #[arg(long, default_value_t = 1024)]
    pub(crate) model_max_length: u32,
}

/// A chat template that comes along; none: the base's own.
pub(crate) type Template = Option<KnownTemplate>;

fn template(name: &str) -> Result<Template, String> {
    match name.to_lowercase().as_str() {
        "tokenizer" | "none" => Ok(None),
        name => KnownTemplate::named(name).map(Some).ok_or_else(|| {
            let known = KnownTemplate::ALL.map(KnownTemplate::name).join(", ");
            format!("it is none of tokenizer, {known}: put it as chat_template.jinja into the base's folder")
        }),
    }
}

impl RowArgs {
    /// The chat template as data-prep is asked for it.
    pub(crate) fn template_name(&self) -> String {
        self.chat_template.map(KnownTemplate::name).unwrap_or_default().to_owned()
    }
}

/// AutoTrain's trainers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Trainer {
    /// Likelihood, an adapter.
    #[default]
    Sft,
    /// Likelihood, all weights of the base unless --peft is given.
    Default,
    /// Direct preference optimisation, on chosen and rejected answers.
    Dpo,
    /// Odds-ratio preference optimisation, on the same.
    Orpo,
    /// A reward model, on the same: an adapter with a score.
    Reward,
}

impl Trainer {
    pub(crate) fn is_preference(self) -> bool {
        matches!(self, Self::Dpo | Self::Orpo | Self::Reward)
    }

    pub(super) fn objective(self) -> Objective {
        match self {
            Self::Sft | Self::Default => Objective::Likelihood,
            Self::Dpo => Objective::Dpo,
            Self::Orpo => Objective::Orpo,
            Self::Reward => Objective::Reward,
        }
    }
}
