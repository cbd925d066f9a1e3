//! Files written here, read again.

mod directories;

use super::*;
use crate::engine::{ModelSource, WorkerConfig};
use crate::evaluate::Probe;
use crate::model::{Decoder, Format, Gguf, Quantize};
use crate::testing::Script;

/// A model of random weights in single precision.
pub fn random(seed: u64) -> (tempfile::TempDir, ModelSource) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dense.gguf");
    let script = Script { seed: Some(seed), context: 128, decline: Some("no"), ..Script::default() };
    std::fs::write(&path, script.gguf()).unwrap();
    (folder, ModelSource::Path(path))
}

pub const TEXT: &str = "A text of some length, so that there is something to foretell: 0123456789.";

#[test]
fn every_format_is_written_and_read_and_loses_little_or_more() {
    let (folder, source) = random(3);
    let dense = Probe::open(&source, &WorkerConfig::default()).unwrap().text(TEXT, 128).unwrap();
    let mut sizes = Vec::new();
    for (to, most) in
        [("f32", 1e-5), ("f16", 1e-3), ("q8_0", 0.02), ("q6_k", 0.03), ("q5_0", 0.1), ("q4_k", 0.1), ("q4_0", 0.2)]
    {
        let target: Target = to.parse().unwrap();
        let path = folder.path().join(format!("{to}.gguf"));
        Weights::read(&source).unwrap().convert(target).unwrap().write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = Gguf::parse(to, &bytes).unwrap();
        // 128 columns are no multiple of 256: the larger blocks give way to smaller ones.
        let expected = match target.blocks() {
            Some(Quantize::Q6_K) => "Q8_0",
            Some(Quantize::Q4_K) => "Q5_0",
            Some(blocks) => blocks.name(),
            None if to == "f16" => "F16",
            None => "F32",
        };
        let kind = Format::from_id(file.tensor("blk.0.ffn_up.weight").unwrap().type_id).unwrap();
        assert_eq!(format!("{kind:?}"), expected, "{to}");
        assert_eq!(Decoder::load(&file).unwrap().quantization(), expected, "{to}");
        assert_eq!(
            (file.text("sluice.decline"), file.integer("general.file_type")),
            (Some("no"), Some(target.file_type().into()))
        );
        let forecast =
            Probe::open(&ModelSource::Path(path), &WorkerConfig::default()).unwrap().text(TEXT, 128).unwrap();
        let off = (forecast.nats / dense.nats - 1.0).abs();
        assert!(off < most, "{to}: {off}");
        sizes.push(bytes.len());
    }
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2] && sizes[2] > sizes[4] && sizes[4] > sizes[6], "{sizes:?}");
}

#[test]
fn what_is_quantised_is_told_and_what_is_wrong_refused() {
    let (folder, source) = random(4);
    let path = folder.path().join("small.gguf");
    let weights = Weights::read(&source).unwrap();
    assert!(weights.quantised().is_none() && weights.refuse_quantised().is_ok());
    weights.convert("q5_0".parse().unwrap()).unwrap().write(&path).unwrap();
    let weights = Weights::read(&ModelSource::Path(path.clone())).unwrap();
    let refused = weights.refuse_quantised().unwrap_err().to_string();
    assert!(refused.contains("small.gguf: its weights are") && refused.contains("--requantize"), "{refused}");
    let nowhere = folder.path().join("nowhere/out.gguf");
    assert!(matches!(weights.write(&nowhere), Err(CompressError::Unwritable { .. })));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let torn = Weights::read(&ModelSource::Path(path.clone())).unwrap_err().to_string();
    assert!(torn.contains("small.gguf"), "{torn}");
    std::fs::write(&path, b"PK").unwrap();
    assert!(matches!(Weights::read(&ModelSource::Path(path)), Err(CompressError::Source(_))));
    assert!(
        "q3".parse::<Target>().unwrap_err().contains("Q4_K") && "int8".parse::<Target>().unwrap().wants_calibration()
    );
}

#[test]
fn a_number_that_is_none_is_found() {
    let (_folder, source) = random(5);
    let mut weights = Weights::read(&source).unwrap();
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let mut values = vec![0.5; 128 * 128];
        values[77] = bad;
        let tensor = candle_core::Tensor::from_vec(values, (128, 128), &candle_core::Device::Cpu).unwrap();
        weights.replace("blk.0.attn_q.weight", &tensor).unwrap();
        let refused = weights.values("blk.0.attn_q.weight").unwrap_err().to_string();
        assert!(refused.contains("attn_q.weight: holds a number that is not finite"), "{refused}");
    }
    assert!(weights.replace("blk.0.attn_q.weight", &weights.values("blk.0.attn_norm.weight").unwrap()).is_err());
}
