//! Calibration: scales input channels of products before their weights are quantised, so that what is large is split between
//! weights and inputs to the least harm.
//!
//! A channel that is multiplied by s in the weights and divided by s in the input leaves the product what it was. The
//! division costs nothing: it goes into the weight of the norm before (queries, keys, values; gate, up) or into the rows of
//! the product before (values → output; up → down), so the file is a normal one. s is a^α / w^(1 − α) for input magnitude a
//! and largest weight w of a channel (SmoothQuant, Xiao et al. 2023, equation 4), or a^α alone (AWQ, Lin et al. 2024); form and
//! α are those with the least squared error of the product, weights *and* inputs being quantised, over half of the rows kept of
//! the calibration text. They are taken only if they make the error smaller over the other half too.

use super::{CompressError, Weights};
use crate::model::{Format, Inputs, NormKind, Quantize, Site, Watch};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};

/// Values of α that are tried.
const STEPS: usize = 10;
/// Scales stay within a factor of this.
const MOST: f32 = 64.0;

/// What calibration came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Calibration {
    /// Groups of products that read the same input.
    pub groups: usize,
    /// Those whose channels were scaled.
    pub scaled: usize,
    /// Squared error of all products over rows that chose nothing, relative to their squared size, without scales.
    pub error_before: f64,
    /// The same with them.
    pub error_after: f64,
}

/// Products that read the same input, and what gives it.
struct Group {
    site: Site,
    readers: &'static [&'static str],
    /// Tensors to divide: a norm's weight, or a product's rows and what is added to them.
    givers: &'static [&'static str],
}

const GROUPS: [Group; 4] = [
    Group { site: Site::Attention, readers: &["attn_q", "attn_k", "attn_v"], givers: &["attn_norm.weight"] },
    Group { site: Site::Output, readers: &["attn_output"], givers: &["attn_v.weight", "attn_v.bias"] },
    Group { site: Site::Feed, readers: &["ffn_gate", "ffn_up"], givers: &["ffn_norm.weight"] },
    Group { site: Site::Down, readers: &["ffn_down"], givers: &["ffn_up.weight", "ffn_up.bias"] },
];

/// Scales the channels of all products for `blocks`, by inputs seen on a calibration text. What the weights compute stays the
/// same until they are quantised.
///
/// # Errors
/// The model has other norms or fused products, the text was too short, or a tensor holds a number that is not finite.
pub fn calibrate(
    weights: &mut Weights,
    watch: &Watch,
    blocks: Quantize,
) -> std::result::Result<Calibration, CompressError> {
    check(weights)?;
    let (mut calibration, mut errors) = (Calibration::default(), [0.0; 3]);
    for layer in 0..weights.shape().layers {
        for group in &GROUPS {
            let inputs = watch.inputs(layer, group.site);
            let matrices: Vec<(String, Tensor)> = group
                .readers
                .iter()
                .map(|reader| format!("blk.{layer}.{reader}.weight"))
                .map(|name| weights.values(&name).map(|values| (name, values)))
                .collect::<std::result::Result<_, _>>()?;
            let spread = Spread::of(weights, group.site);
            let chosen = choose(&matrices, &inputs, blocks, &spread);
            let chosen = chosen.map_err(|error| weights.wrong(&matrices[0].0, error.to_string()))?;
            let Some(chosen) = chosen else { return Err(too_short(weights)) };
            calibration.groups += 1;
            (errors[0], errors[1], errors[2]) =
                (errors[0] + chosen.plain, errors[1] + chosen.best, errors[2] + chosen.size);
            if let Some(scales) = chosen.scales {
                calibration.scaled += 1;
                apply(weights, layer, group, &matrices, &scales, &spread)?;
            }
        }
    }
    let relative = |error: f64| if errors[2] > 0.0 { error / errors[2] } else { 0.0 };
    (calibration.error_before, calibration.error_after) = (relative(errors[0]), relative(errors[1]));
    Ok(calibration)
}

fn check(weights: &Weights) -> std::result::Result<(), CompressError> {
    let fused =
        (GROUPS.iter().flat_map(|group| group.readers)).find(|name| !weights.has(&format!("blk.0.{name}.weight")));
    let problem = match (weights.shape(), fused) {
        (_, Some(name)) => format!("there is no tensor blk.0.{name}.weight of its own"),
        (shape, _) if shape.parallel || shape.norm != NormKind::Rms => {
            "its norms are not before each product".to_owned()
        }
        _ => return Ok(()),
    };
    Err(CompressError::Uncalibrated { file: weights.file().to_owned(), problem })
}

fn too_short(weights: &Weights) -> CompressError {
    let problem = "the calibration text is too short; it should have some thousand tokens".to_owned();
    CompressError::Uncalibrated { file: weights.file().to_owned(), problem }
}

/// How channels of an input belong to rows of what gives it: query heads share the rows of a value head.
struct Spread {
    head: usize,
    shared: usize,
}

impl Spread {
    fn of(weights: &Weights, site: Site) -> Self {
        let shape = weights.shape();
        match site {
            Site::Output => Self { head: shape.head, shared: shape.heads / shape.key_heads },
            _ => Self { head: 1, shared: 1 },
        }
    }

    /// The giver's row of a channel.
    fn row(&self, channel: usize) -> usize {
        let (head, within) = (channel / self.head, channel % self.head);
        head / self.shared * self.head + within
    }

    /// The largest of all channels of each row.
    fn gather(&self, channels: &[f32]) -> Vec<f32> {
        let mut rows = vec![0.0f32; channels.len() / self.shared];
        channels.iter().enumerate().for_each(|(at, value)| rows[self.row(at)] = rows[self.row(at)].max(*value));
        rows
    }

    fn scatter(&self, rows: &[f32]) -> Vec<f32> {
        (0..rows.len() * self.shared).map(|channel| rows[self.row(channel)]).collect()
    }
}

/// What was chosen for a group.
struct Chosen {
    /// For each row of the giver; `None` where nothing is better than nothing.
    scales: Option<Vec<f32>>,
    plain: f64,
    best: f64,
    size: f64,
}

fn choose(matrices: &[(String, Tensor)], inputs: &Inputs, blocks: Quantize, spread: &Spread) -> Result<Option<Chosen>> {
    let cols = inputs.squares.len();
    let rows = inputs.sample.len().checked_div(cols).unwrap_or(0);
    if rows < 8 {
        return Ok(None);
    }
    let sample = Tensor::from_slice(&inputs.sample, (rows, cols), &Device::Cpu)?;
    let half = |parity: usize| -> Result<Tensor> {
        let picked: Vec<u32> = (0..rows).filter(|row| row % 2 == parity).map(|row| row as u32).collect();
        sample.index_select(&Tensor::new(picked, &Device::Cpu)?, 0)
    };
    let (choosing, checking) = (half(0)?, half(1)?);
    let input = spread
        .gather(&inputs.squares.iter().map(|square| (square / inputs.rows as f64).sqrt() as f32).collect::<Vec<_>>());
    let weight = spread.gather(&largest(matrices, cols)?);
    let mut best: Option<(f64, Vec<f32>)> = None;
    for candidate in candidates(&input, &weight) {
        let error = error_of(matrices, &choosing, Some(&spread.scatter(&candidate)), blocks)?;
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, candidate));
        }
    }
    let plain = error_of(matrices, &checking, None, blocks)?;
    let chosen_by = error_of(matrices, &choosing, None, blocks)?;
    let mut chosen = Chosen { scales: None, plain, best: plain, size: size_of(matrices, &checking)? };
    if let Some((error, scales)) = best.filter(|(error, _)| *error < chosen_by) {
        let checked = error_of(matrices, &checking, Some(&spread.scatter(&scales)), blocks)?;
        if error.is_finite() && checked < plain {
            (chosen.best, chosen.scales) = (checked, Some(scales));
        }
    }
    Ok(Some(chosen))
}

/// Largest |weight| of each column over all matrices.
fn largest(matrices: &[(String, Tensor)], cols: usize) -> Result<Vec<f32>> {
    let mut largest = vec![0.0f32; cols];
    for (_, matrix) in matrices {
        let of_matrix = matrix.abs()?.max(0)?.to_vec1::<f32>()?;
        largest.iter_mut().zip(of_matrix).for_each(|(largest, value)| *largest = largest.max(value));
    }
    Ok(largest)
}

/// Scales to try, each with a geometric mean of 1.
fn candidates(input: &[f32], weight: &[f32]) -> Vec<Vec<f32>> {
    let ln = |values: &[f32]| values.iter().map(|value| value.max(1e-8).ln()).collect::<Vec<f32>>();
    let (input, weight) = (ln(input), ln(weight));
    let mut candidates = Vec::new();
    for step in 0..=STEPS {
        let alpha = step as f32 / STEPS as f32;
        for weighed in [0.0, 1.0 - alpha] {
            let raw: Vec<f32> =
                input.iter().zip(&weight).map(|(input, weight)| alpha * input - weighed * weight).collect();
            let mean = raw.iter().sum::<f32>() / raw.len() as f32;
            candidates.push(raw.iter().map(|raw| (raw - mean).exp().clamp(1.0 / MOST, MOST)).collect());
        }
    }
    candidates
}

/// Squared error of the products, weights and inputs being quantised after scaling.
fn error_of(matrices: &[(String, Tensor)], rows: &Tensor, scales: Option<&[f32]>, blocks: Quantize) -> Result<f64> {
    let scales = scales.map(|scales| Tensor::from_slice(scales, (1, scales.len()), &Device::Cpu)).transpose()?;
    let input = match &scales {
        Some(scales) => rows.broadcast_div(scales)?,
        None => rows.clone(),
    };
    let input = rounded(&input, Some(GgmlDType::Q8_0))?;
    let mut error = 0.0;
    for (_, matrix) in matrices {
        let scaled = match &scales {
            Some(scales) => matrix.broadcast_mul(scales)?,
            None => matrix.clone(),
        };
        let format = blocks.format_for(matrix.dims2()?.1, false).and_then(Format::candle);
        let off = (input.matmul(&rounded(&scaled, format)?.t()?)? - rows.matmul(&matrix.t()?)?)?;
        error += f64::from(off.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(error)
}

fn size_of(matrices: &[(String, Tensor)], rows: &Tensor) -> Result<f64> {
    matrices
        .iter()
        .map(|(_, matrix)| Ok(f64::from(rows.matmul(&matrix.t()?)?.sqr()?.sum_all()?.to_scalar::<f32>()?)))
        .sum()
}

/// What is left of numbers after they were written in a format.
fn rounded(values: &Tensor, format: Option<GgmlDType>) -> Result<Tensor> {
    match format {
        Some(format) if values.dims2()?.1.is_multiple_of(format.block_size()) => {
            QTensor::quantize(values, format)?.dequantize(&Device::Cpu)
        }
        _ => Ok(values.clone()),
    }
}

/// Multiplies the readers' columns and divides what gives their input.
fn apply(
    weights: &mut Weights,
    layer: usize,
    group: &Group,
    matrices: &[(String, Tensor)],
    scales: &[f32],
    spread: &Spread,
) -> std::result::Result<(), CompressError> {
    let columns = spread.scatter(scales);
    for (name, matrix) in matrices {
        let scaled = Tensor::from_slice(&columns, (1, columns.len()), &Device::Cpu);
        let scaled = scaled.and_then(|scales| matrix.broadcast_mul(&scales));
        let scaled = scaled.map_err(|error| weights.wrong(name, error.to_string()))?;
        weights.replace(name, &scaled)?;
    }
    for giver in group.givers {
        let name = format!("blk.{layer}.{giver}");
        if !weights.has(&name) {
            continue;
        }
        let values = weights.values(&name)?;
        let shape = if values.dims().len() == 2 { (scales.len(), 1) } else { (1, scales.len()) };
        let divided = || -> Result<Tensor> {
            let scales = Tensor::from_slice(scales, shape, &Device::Cpu)?;
            match values.dims().len() {
                2 => values.broadcast_div(&scales),
                _ => values.broadcast_div(&scales.flatten_all()?),
            }
        };
        let divided = divided().map_err(|error| weights.wrong(&name, error.to_string()))?;
        weights.replace(&name, &divided)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::tests::{TEXT, random};
    use crate::engine::{ModelSource, WorkerConfig};
    use crate::evaluate::Probe;

    #[test]
    fn query_heads_share_the_rows_of_their_value_head() {
        let spread = Spread { head: 2, shared: 3 };
        let channels: Vec<f32> = (0..12).map(|at| at as f32).collect();
        assert_eq!((0..12).map(|at| spread.row(at)).collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
        assert_eq!(spread.gather(&channels), [4.0, 5.0, 10.0, 11.0]);
        assert_eq!(spread.scatter(&[7.0, 8.0, 9.0, 1.0])[4..8], [7.0, 8.0, 9.0, 1.0]);
    }

    /// A model with a few loud channels before each product, as real ones have.
    fn loud() -> (tempfile::TempDir, ModelSource) {
        let (folder, source) = random(9);
        let mut weights = Weights::read(&source).unwrap();
        for name in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
            let values: Vec<f32> = (0..128).map(|at| if at % 41 == 7 { 40.0 } else { 1.0 }).collect();
            weights.replace(name, &Tensor::from_vec(values, 128, &Device::Cpu).unwrap()).unwrap();
        }
        let path = folder.path().join("loud.gguf");
        weights.write(&path).unwrap();
        (folder, ModelSource::Path(path))
    }

    #[test]
    fn the_model_stays_what_it_was_and_loses_less_when_quantised() {
        let (folder, source) = loud();
        let mut probe = Probe::open(&source, &WorkerConfig::default()).unwrap();
        let text = TEXT.repeat(40);
        let (dense, watch) = (probe.text(&text, 128).unwrap(), probe.watch(&text, 128).unwrap());
        assert_eq!(watch.inputs(0, Site::Down).squares.len(), 128);
        let mut weights = Weights::read(&source).unwrap();
        let calibration = calibrate(&mut weights, &watch, Quantize::Q4_0).unwrap();
        assert_eq!(calibration.groups, 4);
        assert!(calibration.scaled >= 2 && calibration.error_after < 0.8 * calibration.error_before, "{calibration:?}");

        let path = folder.path().join("scaled.gguf");
        let forecast = |weights: &Weights| {
            weights.write(&path).unwrap();
            Probe::open(&ModelSource::Path(path.clone()), &WorkerConfig::default()).unwrap().text(&text, 128).unwrap()
        };
        let scaled = forecast(&weights);
        assert!((scaled.nats / dense.nats - 1.0).abs() < 1e-4, "{} {}", scaled.nats, dense.nats);
        let small = forecast(&weights.convert("q4_0".parse().unwrap()).unwrap());
        let plain = forecast(&Weights::read(&source).unwrap().convert("q4_0".parse().unwrap()).unwrap());
        let agreement = |other| dense.agreement(other).unwrap();
        assert!(agreement(&small) > agreement(&plain), "{} {}", agreement(&small), agreement(&plain));
    }

    #[test]
    fn too_short_a_text_is_told() {
        let (_folder, source) = random(9);
        let watch = Probe::open(&source, &WorkerConfig::default()).unwrap().watch("short", 128).unwrap();
        let refused = calibrate(&mut Weights::read(&source).unwrap(), &watch, Quantize::Q8_0).unwrap_err().to_string();
        assert!(refused.contains("calibration text is too short"), "{refused}");
    }
}
