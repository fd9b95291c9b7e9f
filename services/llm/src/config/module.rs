//! Names of a block's parts, as checkpoints have them.

use super::NormPlacement;

/// A block's linear layers, in the order of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// MLP's gate.
    Gate,
    /// MLP's input.
    Up,
    /// MLP's output.
    Down,
}

impl Module {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Position in [`Module::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Last part of its name in a checkpoint, such as `q_proj`.
    pub fn name(self) -> &'static str {
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"][self.index()]
    }

    /// Path within its layer, such as `self_attn.q_proj`.
    pub fn path(self) -> String {
        let parent = if self.index() < 4 { "self_attn" } else { "mlp" };
        format!("{parent}.{}", self.name())
    }
}

/// A block's norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// Before attention.
    Attention,
    /// Of the queries' heads.
    Query,
    /// Of the keys' heads.
    Key,
    /// After attention, before the residual sum.
    AfterAttention,
    /// Before the MLP.
    Mlp,
    /// After the MLP, before the residual sum.
    AfterMlp,
}

impl Norm {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Attention, Self::Query, Self::Key, Self::AfterAttention, Self::Mlp, Self::AfterMlp];

    /// Position in [`Norm::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Path within its layer. `post_attention_layernorm` is the MLP's norm where nothing is normed after attention.
    pub fn path(self, placement: NormPlacement) -> &'static str {
        match (self, placement) {
            (Self::Attention, _) => "input_layernorm",
            (Self::Query, _) => "self_attn.q_norm",
            (Self::Key, _) => "self_attn.k_norm",
            (Self::Mlp, NormPlacement::BeforeAndAfter) => "pre_feedforward_layernorm",
            (Self::AfterAttention | Self::Mlp, _) => "post_attention_layernorm",
            (Self::AfterMlp, _) => "post_feedforward_layernorm",
        }
    }
}
