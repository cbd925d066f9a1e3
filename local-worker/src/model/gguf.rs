//! Reading GGUF, version 2 and 3, little endian: metadata, the list of tensors, and each tensor's bytes.
//!
//! Files come from anywhere. Every count is held against the bytes that are left before anything is allocated for it, every
//! sum of offsets is checked, and every fault is a [`LoadError`] that names the file and the place.

use std::collections::{BTreeMap, HashMap};

use super::LoadError;
use super::format::Format;
use super::tensors::Tensors;

/// Keys and tensors a file may have; real ones have some hundreds.
const MOST_ENTRIES: u64 = 1 << 20;

/// A metadata value. Integers of all widths are one kind, as are floats; nested lists are not supported.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer.
    Integer(i128),
    /// Either float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(String),
    /// A list of integers, or of truth values as 0 and 1.
    Integers(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f64>),
    /// A list of strings.
    Texts(Vec<String>),
}

/// Where a tensor lies, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Sizes, the fastest running first, as the file has them.
    pub dimensions: Vec<u64>,
    /// The file's number for the element type.
    pub type_id: u32,
    /// From the start of the tensor data, in bytes.
    pub offset: u64,
}

/// A file's metadata and tensors; borrows its bytes.
#[derive(Debug)]
pub struct Gguf<'bytes> {
    name: String,
    metadata: BTreeMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    data: &'bytes [u8],
}

impl<'bytes> Gguf<'bytes> {
    /// Reads the head of a file; `name` is for messages.
    ///
    /// # Errors
    /// [`LoadError::Malformed`] for anything that is not sound GGUF.
    pub fn parse(name: &str, bytes: &'bytes [u8]) -> Result<Self, LoadError> {
        let mut reader = Reader { bytes, at: 0 };
        let parts = read_file(&mut reader);
        let (metadata, tensors, start) =
            parts.map_err(|problem| malformed(name, format!("{problem} (at byte {})", reader.at)))?;
        let data = bytes.get(start..).unwrap_or(&[]);
        Ok(Self { name: name.to_owned(), metadata, tensors, data })
    }

    /// The file's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A string, if the key is there and is one.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A truth value, if the key is there and is one.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key) {
            Some(Value::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    /// An integer that fits, if the key is there and is one.
    pub fn integer(&self, key: &str) -> Option<u64> {
        match self.get(key) {
            Some(Value::Integer(value)) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A number, if the key is there and is one.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key) {
            Some(Value::Float(value)) => Some(*value),
            Some(Value::Integer(value)) => Some(*value as f64),
            _ => None,
        }
    }

    /// A tensor's place; `None` if there is no such tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// `length` bytes of a tensor.
    ///
    /// # Errors
    /// The file ends before the tensor does.
    pub fn tensor_bytes(&self, name: &str, info: &TensorInfo, length: u64) -> Result<&'bytes [u8], LoadError> {
        let end = info.offset.checked_add(length);
        let range = end.and_then(|end| Some(usize::try_from(info.offset).ok()?..usize::try_from(end).ok()?));
        range.and_then(|range| self.data.get(range)).ok_or_else(|| {
            let have = self.data.len();
            self.malformed(format!(
                "tensor {name} should take {length} bytes from offset {}, the file holds {have} bytes of tensors; is it cut off?",
                info.offset
            ))
        })
    }

    /// A fault of this file.
    pub fn malformed(&self, problem: impl Into<String>) -> LoadError {
        malformed(&self.name, problem.into())
    }

    /// Something this build can't do with this file.
    pub fn unsupported(&self, problem: impl Into<String>) -> LoadError {
        LoadError::Unsupported { file: self.name.clone(), problem: problem.into() }
    }
}

impl Tensors for Gguf<'_> {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn bytes(&self, name: &str, shape: &[usize]) -> Result<(&[u8], Format), LoadError> {
        let info = self.tensor(name).ok_or_else(|| self.malformed(format!("tensor {name} is missing")))?;
        // The file has the fastest running first, and sometimes ones at the end.
        let wanted: Vec<u64> = shape.iter().rev().map(|size| *size as u64).collect();
        let mut dimensions = info.dimensions.as_slice();
        while let ([rest @ .., 1], true) = (dimensions, dimensions.len() > wanted.len()) {
            dimensions = rest;
        }
        if dimensions != wanted {
            let problem =
                format!("tensor {name} has the shape {:?}, the metadata asks for {wanted:?}", info.dimensions);
            return Err(self.malformed(problem));
        }
        let Some(format) = Format::from_id(info.type_id) else {
            let known = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are supported";
            return Err(self.unsupported(format!("tensor {name} has the element type {}; {known}", info.type_id)));
        };
        let (weights, _) = format.block();
        let (cols, rows) = (wanted[0], wanted[1..].iter().product::<u64>());
        let Some(length) = format.bytes(rows, cols) else {
            let problem = format!("tensor {name} has rows of {cols} weights, {format:?} needs multiples of {weights}");
            return Err(self.malformed(problem));
        };
        Ok((self.tensor_bytes(name, info, length)?, format))
    }

    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn fault(&self, _name: &str, problem: String) -> LoadError {
        self.malformed(problem)
    }

    fn refusal(&self, _name: &str, problem: String) -> LoadError {
        self.unsupported(problem)
    }
}

fn malformed(name: &str, problem: String) -> LoadError {
    LoadError::Malformed { file: name.to_owned(), problem }
}

type Parts = (BTreeMap<String, Value>, HashMap<String, TensorInfo>, usize);

fn read_file(reader: &mut Reader<'_>) -> Result<Parts, String> {
    if reader.take(4)? != b"GGUF" {
        return Err("the file does not begin with GGUF; this is not a GGUF file".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version}, which is not 2 or 3 in little endian"));
    }
    let tensor_count = reader.count("tensors", 8 + 4 + 4 + 8)?;
    let key_count = reader.count("metadata keys", 8 + 4 + 1)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = reader.string()?;
        let kind = reader.u32()?;
        let value = reader.value(kind).map_err(|problem| format!("metadata key {key}: {problem}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("metadata key {key} is there twice"));
        }
        metadata.insert(key, value);
    }
    let mut tensors = HashMap::new();
    for _ in 0..tensor_count {
        let name = reader.string()?;
        let info = reader.tensor().map_err(|problem| format!("tensor {name}: {problem}"))?;
        if tensors.contains_key(&name) {
            return Err(format!("tensor {name} is there twice"));
        }
        tensors.insert(name, info);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(alignment @ 1..=65_536)) => *alignment as usize,
        Some(other) => return Err(format!("general.alignment is {other:?}, which is not between 1 and 65536")),
    };
    let start = reader.at.div_ceil(alignment) * alignment;
    Ok((metadata, tensors, start))
}

/// Takes values off the front.
struct Reader<'bytes> {
    bytes: &'bytes [u8],
    at: usize,
}

impl<'bytes> Reader<'bytes> {
    fn take(&mut self, count: usize) -> Result<&'bytes [u8], String> {
        let left = self.bytes.get(self.at..).unwrap_or(&[]);
        let taken = left
            .get(..count)
            .ok_or_else(|| format!("{count} bytes wanted, {} left; the file is cut off", left.len()))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "the file is cut off".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things of at least `size` bytes each that the rest of the file can hold.
    fn count(&mut self, what: &str, size: usize) -> Result<usize, String> {
        let count = self.u64()?;
        self.check_count(count, what, size)?;
        if count > MOST_ENTRIES {
            return Err(format!("{count} {what}, more than any model has"));
        }
        Ok(count as usize)
    }

    fn check_count(&self, count: u64, what: &str, size: usize) -> Result<usize, String> {
        let left = self.bytes.len().saturating_sub(self.at);
        match count.checked_mul(size as u64) {
            Some(bytes) if bytes <= left as u64 => Ok(count as usize),
            _ => Err(format!("{count} {what} claimed, {left} bytes left; the file is damaged or cut off")),
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let length = self.check_count(length, "bytes of text", 1)?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "text that is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Integer(self.integer(kind)?),
            6 | 12 => Value::Float(self.float(kind)?),
            7 => Value::Bool(self.integer(0)? != 0),
            8 => Value::Text(self.string()?),
            9 => self.list()?,
            other => return Err(format!("value type {other} is unknown")),
        })
    }

    fn list(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            other => return Err(format!("a list of values of type {other} is not supported")),
        };
        let length = self.u64()?;
        let length = self.check_count(length, "list entries", size)?;
        Ok(match kind {
            6 | 12 => Value::Floats((0..length).map(|_| self.float(kind)).collect::<Result<_, _>>()?),
            8 => Value::Texts((0..length).map(|_| self.string()).collect::<Result<_, _>>()?),
            kind => {
                let kind = if kind == 7 { 0 } else { kind };
                let entry = |reader: &mut Self| {
                    i64::try_from(reader.integer(kind)?).map_err(|_| "an integer beyond 64 bits".to_owned())
                };
                Value::Integers((0..length).map(|_| entry(self)).collect::<Result<_, _>>()?)
            }
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i128, String> {
        Ok(match kind {
            0 => self.array().map(u8::from_le_bytes)?.into(),
            1 => self.array().map(i8::from_le_bytes)?.into(),
            2 => self.array().map(u16::from_le_bytes)?.into(),
            3 => self.array().map(i16::from_le_bytes)?.into(),
            4 => self.u32()?.into(),
            5 => self.array().map(i32::from_le_bytes)?.into(),
            10 => self.u64()?.into(),
            _ => self.array().map(i64::from_le_bytes)?.into(),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, String> {
        if kind == 6 { Ok(self.array().map(f32::from_le_bytes)?.into()) } else { self.array().map(f64::from_le_bytes) }
    }

    fn tensor(&mut self) -> Result<TensorInfo, String> {
        let count = self.u32()?;
        if !(1..=4).contains(&count) {
            return Err(format!("{count} dimensions, where 1 to 4 are possible"));
        }
        let dimensions = (0..count).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        let elements = dimensions.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        if elements.is_none_or(|elements| elements == 0) {
            return Err(format!("impossible dimensions {dimensions:?}"));
        }
        Ok(TensorInfo { dimensions, type_id: self.u32()?, offset: self.u64()? })
    }
}
