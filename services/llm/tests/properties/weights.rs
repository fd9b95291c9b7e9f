//! The safetensors reader beside the safetensors crate.

use firn_llm::weights::Weights;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use super::damage::{cases, damages};

fn open(bytes: &[u8]) -> Result<Weights, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let opened = Weights::open_file(&path).map_err(|error| error.to_string());
    if let Err(sentence) = &opened {
        assert!(sentence.contains("model.safetensors: it"), "{sentence:?} does not name the file");
    }
    opened
}

/// A small file with a tensor of each type that is read, an empty one and one that is not read.
fn valid() -> Vec<u8> {
    let data: Vec<u8> = (0..48).collect();
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), &data[..bytes]).unwrap();
    let tensors = [
        ("full", view(Dtype::F32, &[3, 4], 48)),
        ("brain", view(Dtype::BF16, &[5], 10)),
        ("half", view(Dtype::F16, &[2, 1, 3], 12)),
        ("empty", view(Dtype::F32, &[0, 7], 0)),
        ("scalar", view(Dtype::F32, &[], 4)),
        ("whole", view(Dtype::I64, &[2], 16)),
    ];
    serialize(tensors, None).unwrap()
}

/// What opens holds what the safetensors crate finds, to the bit.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(weights) = open(bytes) else { return Ok(()) };
    let expected = SafeTensors::deserialize(bytes).unwrap();
    let mut names: Vec<_> = expected.names();
    names.sort_unstable();
    prop_assert_eq!(weights.names(), names);
    for (name, view) in expected.tensors() {
        let (two, four) = (view.data().as_chunks::<2>().0, view.data().as_chunks::<4>().0);
        let values: Option<Vec<f32>> = match view.dtype() {
            Dtype::F32 => Some(four.iter().copied().map(f32::from_le_bytes).collect()),
            Dtype::BF16 => Some(two.iter().map(|v| bf16::from_le_bytes(*v).to_f32()).collect()),
            Dtype::F16 => Some(two.iter().map(|v| f16::from_le_bytes(*v).to_f32()).collect()),
            _ => None,
        };
        let found = weights.read(&name).ok();
        prop_assert_eq!(found.is_some(), values.is_some(), "{}", name);
        if let (Some((found, shape)), Some(values)) = (found, values) {
            prop_assert_eq!(shape.iter().product::<usize>(), found.len());
            prop_assert_eq!(&shape[..], view.shape());
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&found), bits(&values));
            let finite = weights.read_finite(&name, &shape);
            prop_assert_eq!(finite.is_ok(), values.iter().all(|v| v.is_finite()));
        }
    }
    Ok(())
}

fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..20, (0u32..64).prop_map(|bit| 1 << bit), Just(u64::MAX), any::<u64>()]
}

/// A header whose entries are well formed and whose numbers may be anything; half of them follow each other.
fn header() -> impl Strategy<Value = Vec<u8>> {
    let dtype = prop::sample::select(vec!["F32", "BF16", "F16", "I64", "U8", "F4", "BOOL", "F31"]);
    let shape = prop::collection::vec(prop_oneof![3 => 0u64..4, 1 => edge()], 0..4);
    let entry = ("[a-c]{1,2}", dtype, shape, edge(), edge(), any::<bool>());
    (prop::collection::vec(entry, 0..6), 0usize..64, any::<bool>()).prop_map(|(entries, data, fits)| {
        let mut at = 0u64;
        let entries: Vec<String> = entries
            .into_iter()
            .map(|(name, dtype, shape, start, end, follows)| {
                let width = match dtype {
                    "F32" => 4,
                    "I64" => 8,
                    "BF16" | "F16" => 2,
                    _ => 1,
                };
                let size = shape.iter().fold(width, |size: u64, width| size.wrapping_mul(*width));
                let (start, end) = if follows { (at, at.wrapping_add(size)) } else { (start, end) };
                at = end;
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
            })
            .collect();
        let text = format!("{{{}}}", entries.join(","));
        let data = if fits { usize::try_from(at).unwrap_or(data).min(4096) } else { data };
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.into_bytes());
        bytes.resize(bytes.len() + data, 0x3f);
        bytes
    })
}

#[test]
fn the_valid_file_is_read() {
    check(&valid()).unwrap();
    assert_eq!(open(&valid()).unwrap().names().len(), 6);
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes)?;
    }

    #[test]
    fn any_bytes_after_a_length_that_fits(bytes in prop::collection::vec(any::<u8>(), 0..200), rest in 0usize..50) {
        let size = bytes.len().saturating_sub(rest) as u64;
        check(&[&size.to_le_bytes()[..], &bytes].concat())?;
    }

    #[test]
    fn any_damage(damages in damages()) {
        let bytes = damages.iter().fold(valid(), |bytes, damage| damage.to(bytes));
        check(&bytes)?;
        // Nothing is refused that the format allows; a name that comes twice is allowed by the crate alone.
        if let Err(sentence) = open(&bytes) {
            prop_assert!(
                SafeTensors::deserialize(&bytes).is_err() || sentence.contains("twice"),
                "refused without need: {}", sentence
            );
        }
    }

    #[test]
    fn any_header(bytes in header()) {
        check(&bytes)?;
    }
}
