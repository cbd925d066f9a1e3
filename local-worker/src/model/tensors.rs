//! Where a decoder's weights come from: any file of named tensors. Reads, checks shapes, packs (quantising first where that
//! was asked for), and keeps count of what was used, so that a tensor nobody knows is not silently left out.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};

use super::format::{Format, NotFinite, pack, singles};
use super::{LoadError, Quantize};
use crate::kernels::{Matrix, Memory};

/// A file, or several, of named tensors.
pub trait Tensors {
    /// Whether there is such a tensor.
    fn has(&self, name: &str) -> bool;

    /// A tensor's bytes, row after row, after its shape (rows first) was found as expected.
    ///
    /// # Errors
    /// It is missing, cut off, of another shape or of an unknown element type.
    fn bytes(&self, name: &str, shape: &[usize]) -> Result<(&[u8], Format), LoadError>;

    /// Bytes of all tensors, about.
    fn size(&self) -> u64;

    /// Names of all tensors.
    fn names(&self) -> Vec<String>;

    /// A fault of the file that holds a tensor.
    fn fault(&self, name: &str, problem: String) -> LoadError;

    /// Something about a tensor this build can't do.
    fn refusal(&self, name: &str, problem: String) -> LoadError;
}

/// Rows of a tensor, where several matrices lie in one.
#[derive(Debug, Clone)]
pub struct Part {
    /// Rows wanted.
    pub rows: Range<usize>,
    /// Rows of the tensor.
    pub of: usize,
}

impl Part {
    /// All rows.
    pub fn whole(rows: usize) -> Self {
        Self { rows: 0..rows, of: rows }
    }
}

/// Reads tensors and keeps count.
pub struct Loader<'file> {
    tensors: &'file dyn Tensors,
    quantize: Option<Quantize>,
    used: RefCell<HashSet<String>>,
    formats: RefCell<HashMap<String, u64>>,
    memory: RefCell<Memory>,
}

impl<'file> Loader<'file> {
    /// Of a file; `quantize` is what matrices of floating point become.
    pub fn new(tensors: &'file dyn Tensors, quantize: Option<Quantize>) -> Self {
        let memory = RefCell::new(Memory::expecting(usize::try_from(tensors.size()).unwrap_or(0)));
        Self { tensors, quantize, used: RefCell::default(), formats: RefCell::default(), memory }
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.has(name)
    }

    /// Some rows of a tensor as a packed matrix with `cols` inputs. `precise` is for the ends of a model, which small
    /// formats harm more than its middle.
    pub fn matrix(&self, name: &str, part: &Part, cols: usize, precise: bool) -> Result<Matrix, LoadError> {
        let (bytes, format) = self.tensors.bytes(name, &[part.of, cols])?;
        self.used.borrow_mut().insert(name.to_owned());
        let row = format.bytes(1, cols as u64).unwrap_or(0) as usize;
        let bytes = &bytes[part.rows.start * row..part.rows.end * row];
        let rows = part.rows.len();
        let not_finite =
            |NotFinite| self.tensors.fault(name, format!("tensor {name} holds a number that is not finite"));
        let target = self.quantize.filter(|_| format.dense()).and_then(|wanted| wanted.format_for(cols, precise));
        let (bytes, format) = match target {
            Some(target) => {
                let values = singles(bytes, format);
                if values.iter().any(|value| !value.is_finite()) {
                    return Err(not_finite(NotFinite));
                }
                let bytes = quantized(values, rows, cols, target);
                let bytes = bytes.map_err(|error| self.tensors.refusal(name, format!("tensor {name}: {error}")))?;
                (Cow::Owned(bytes), target)
            }
            None => (Cow::Borrowed(bytes), format),
        };
        *self.formats.borrow_mut().entry(format!("{format:?}")).or_default() += (rows * cols) as u64;
        pack(&mut self.memory.borrow_mut(), &bytes, format, (rows, cols)).map_err(not_finite)
    }

    /// A part of a tensor of one dimension as floats.
    pub fn vector(&self, name: &str, part: &Part) -> Result<Vec<f32>, LoadError> {
        let (bytes, format) = self.tensors.bytes(name, &[part.of])?;
        self.used.borrow_mut().insert(name.to_owned());
        if !format.dense() {
            let problem = format!("tensor {name} is {format:?}; only F32, F16 and BF16 are supported for it");
            return Err(self.tensors.refusal(name, problem));
        }
        let mut values = singles(bytes, format);
        if values.iter().any(|value| !value.is_finite()) {
            return Err(self.tensors.fault(name, format!("tensor {name} holds a number that is not finite")));
        }
        values.truncate(part.rows.end);
        Ok(values.split_off(part.rows.start))
    }

    /// The element type of most weights.
    pub fn quantization(&self) -> String {
        let formats = self.formats.borrow();
        formats.iter().max_by_key(|(_, weights)| **weights).map(|(format, _)| format.clone()).unwrap_or_default()
    }

    /// Refuses a file with tensors that were not used, except those `known` to be of no use.
    pub fn finish(&self, known: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        let used = self.used.borrow();
        let mut names = self.tensors.names();
        names.sort();
        match names.iter().find(|name| !used.contains(*name) && !known(name)) {
            None => Ok(()),
            Some(name) => {
                let problem = format!("tensor {name} has no place in this architecture as this build knows it");
                Err(self.tensors.refusal(name, problem))
            }
        }
    }
}

/// The weights in blocks, as a GGUF file would hold them.
fn quantized(values: Vec<f32>, rows: usize, cols: usize, format: Format) -> candle_core::Result<Vec<u8>> {
    let tensor = Tensor::from_vec(values, (rows, cols), &Device::Cpu)?;
    let Some(dtype) = format.candle() else {
        candle_core::bail!("{format:?} is no quantised format");
    };
    Ok(QTensor::quantize(&tensor, dtype)?.data()?.into_owned())
}
