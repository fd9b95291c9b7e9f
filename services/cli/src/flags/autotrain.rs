//! What becomes of the flags of AutoTrain's `llm` command that are not flags here by the same name: those of 0.6 and of
//! 0.8.

/// What a flag of AutoTrain is here.
#[derive(Debug)]
pub(super) enum Fate {
    /// A flag of another name.
    Renamed(&'static str),
    /// Nothing that could be switched; `value`: it takes a value.
    NoEffect { value: bool, because: &'static str },
    /// These values mean what is done anyway; any other is refused.
    Only { values: &'static [&'static str], otherwise: &'static str },
    /// A flag of the same name that takes the first value of a list.
    First { because: &'static str },
    /// Not to be had.
    Refused(&'static str),
}

use Fate::{First, NoEffect, Only, Refused, Renamed};

const PRECISION: &str = "--device says it: f32 on a CPU and with cuda:0:f32, bf16 with f32 sums on a GPU else";

/// By name, without the hyphens before it.
pub(super) const FLAGS: [(&str, Fate); 34] = [
    ("use-peft", Renamed("peft")),
    ("train-batch-size", Renamed("batch-size")),
    ("num-train-epochs", Renamed("epochs")),
    ("evaluation-strategy", Renamed("eval-strategy")),
    ("learning-rate", Renamed("lr")),
    ("gradient-accumulation-steps", Renamed("gradient-accumulation")),
    ("block-size", First { because: "a row is cut as a whole, at --model-max-length" }),
    ("use-int4", Refused("say --quantization int4")),
    ("use-int8", Refused("say --quantization int8")),
    ("add-eos-token", NoEffect { value: false, because: "a text ends with the base's own token, once" }),
    (
        "apply-chat-template",
        NoEffect { value: false, because: "a column of messages goes through the base's template" },
    ),
    ("padding", NoEffect { value: true, because: "rows are packed, not padded" }),
    ("use-flash-attention-2", NoEffect { value: false, because: "attention is this version's own" }),
    ("logging-steps", NoEffect { value: true, because: "every step is told, and kept in jobs/…/steps" }),
    ("save-strategy", NoEffect { value: true, because: "checkpoints are written every --checkpoint-steps" }),
    ("save-steps", Renamed("checkpoint-steps")),
    ("save-total-limit", NoEffect { value: true, because: "the last two checkpoints are kept, and the best" }),
    ("max-prompt-length", NoEffect { value: true, because: "a row is cut as a whole, at --model-max-length" }),
    ("max-completion-length", NoEffect { value: true, because: "a row is cut as a whole, at --model-max-length" }),
    ("mixed-precision", NoEffect { value: true, because: PRECISION }),
    ("fp16", NoEffect { value: false, because: PRECISION }),
    ("unsloth", NoEffect { value: false, because: "kernels are this version's own" }),
    ("distributed-backend", NoEffect { value: true, because: "--device cuda:0-1 names the GPUs of a job" }),
    ("token", NoEffect { value: true, because: "HF_TOKEN in the environment is read, and only if a hub is asked" }),
    ("username", NoEffect { value: true, because: "nothing is sent to a hub" }),
    (
        "log",
        Only {
            values: &["none"],
            otherwise: "leave it out: curves are in report.html and report.json, metrics on the OTLP endpoint",
        },
    ),
    (
        "backend",
        Only { values: &["local", "local-cli"], otherwise: "leave it out, or use a running stack with --remote" },
    ),
    (
        "optimizer",
        Only {
            values: &["adamw_torch", "adamw", "adamw_hf", "adamw_torch_fused"],
            otherwise: "leave it out: the optimiser is AdamW",
        },
    ),
    ("model-ref", Refused("leave it out: the reference is the base without its adapter")),
    ("push-to-hub", Refused("copy the result folder yourself")),
    ("repo-id", Refused("copy the result folder yourself")),
    ("deploy", Refused("the registry's alias is served as soon as the job ends")),
    ("inference", Refused("use `firn generate`, or `firn up`")),
    ("trust-remote-code", Refused("leave it out: nothing of a checkpoint is executed")),
];

/// What `--parity` stands for: the run of the tutorial, as AutoTrain 0.6.79 does it. Loss is on every token because the
/// rows are text. Not reproduced are its doubled BOS and EOS tokens and its miscounted schedule.
pub(super) const REPRODUCED: [&str; 24] = [
    "--target-modules",
    "q_proj,v_proj",
    "--lora-r",
    "16",
    "--lora-alpha",
    "32",
    "--lora-dropout",
    "0.05",
    "--packing",
    "wrapped",
    "--block-size",
    "1024",
    "--model-max-length",
    "0",
    "--scheduler",
    "linear",
    "--warmup-ratio",
    "0.1",
    "--weight-decay",
    "0",
    "--max-grad-norm",
    "1",
    "--eval-strategy",
    "no",
];

#[cfg(test)]
mod tests {
    use super::FLAGS;

    #[test]
    fn a_flag_has_one_fate() {
        let mut names: Vec<_> = FLAGS.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FLAGS.len());
    }
}
