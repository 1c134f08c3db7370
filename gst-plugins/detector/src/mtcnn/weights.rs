//! Reads the weights of MTCNN's networks as facenet-pytorch publishes them: state dicts in the format before PyTorch 1.6, a
//! sequence of pickles followed by the raw storages.
//!
//! The pickles are interpreted by a machine that supports only what state dicts need and calls nothing. Formats: CPython
//! `Lib/pickletools.py`, PyTorch `torch/serialization.py` (`_legacy_save`).

use std::{collections::HashMap, rc::Rc};

/// The magic number of such a file, as the bytes of a Python integer.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The protocol version.
const PROTOCOL: i64 = 1001;
/// Maximum number of instructions of one pickle; the three networks have fewer than 1,000. Also bounds the nesting.
const MAX_STEPS: usize = 4_000;
/// Maximum number of values of one tensor; the largest of the three networks has 294,912.
const MAX_VALUES: usize = 1 << 20;

/// A tensor of floats, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// Sizes, the slowest dimension first.
    pub(super) shape: Vec<usize>,
    /// One for each element.
    pub(super) values: Vec<f32>,
}

/// Tensors by their names.
pub(super) type StateDict = HashMap<String, Tensor>;

type Result<T> = std::result::Result<T, String>;

/// Reads the bytes of a file. The error is a description for people.
pub(super) fn read(mut bytes: &[u8]) -> Result<StateDict> {
    let stream = &mut bytes;
    if !matches!(&*run(stream)?, Value::Long(digits) if *digits == MAGIC) {
        return Err("it does not begin as a PyTorch file of the older form".to_owned());
    }
    if !matches!(&*run(stream)?, Value::Int(PROTOCOL)) {
        return Err(format!("the version of its protocol is not {PROTOCOL}"));
    }
    // Properties of the machine that wrote it.
    run(stream)?;
    let root = run(stream)?;
    let Value::Dict(entries) = &*root else { return Err("it holds no state dict".to_owned()) };
    let keys = run(stream)?;
    let Value::List(keys) = &*keys else { return Err("it does not list its storages".to_owned()) };

    let mut storages: HashMap<&str, &[u8]> = HashMap::new();
    for key in keys {
        let Value::Text(key) = &**key else { return Err("a storage has no name".to_owned()) };
        let count = take(stream, 8)?;
        let count = count.first_chunk().map(|count| u64::from_le_bytes(*count));
        let size = count.and_then(|count| usize::try_from(count).ok()).and_then(|count| count.checked_mul(4));
        let size = size.ok_or_else(|| format!("storage {key} has no plausible size"))?;
        storages.insert(key, take(stream, size)?);
    }

    let mut tensors = StateDict::new();
    for (name, value) in entries {
        if let (Value::Text(name), Value::Tensor(view)) = (&**name, &**value) {
            let storage = storages.get(&*view.storage);
            let storage = storage.ok_or_else(|| format!("tensor {name} has no storage"))?;
            let values =
                view.gather(storage).ok_or_else(|| format!("tensor {name} reaches beyond its storage"))?;
            tensors.insert(name.to_string(), Tensor { shape: view.shape.clone(), values });
        }
    }
    Ok(tensors)
}

/// A tensor as a view of a storage.
#[derive(Debug, Clone)]
struct StorageView {
    storage: Rc<str>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl StorageView {
    /// Returns its values, row by row; `None` if it reaches beyond the storage.
    fn gather(&self, storage: &[u8]) -> Option<Vec<f32>> {
        let count = self.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
        if count > MAX_VALUES || self.shape.len() != self.strides.len() {
            return None;
        }
        let (floats, _) = storage.as_chunks();
        let mut values = Vec::with_capacity(count);
        for index in 0..count {
            let (mut rest, mut at) = (index, self.offset);
            for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
                at = at.checked_add((rest % size).checked_mul(stride)?)?;
                rest /= size;
            }
            values.push(f32::from_le_bytes(*floats.get(at)?));
        }
        Some(values)
    }
}

/// The values of a pickle that state dicts need.
#[derive(Debug)]
enum Value {
    Nothing,
    Int(i64),
    Long(Vec<u8>),
    Text(Rc<str>),
    Tuple(Vec<Rc<Self>>),
    List(Vec<Rc<Self>>),
    Dict(Vec<(Rc<Self>, Rc<Self>)>),
    Global(String),
    Storage(Rc<str>),
    Tensor(StorageView),
}

impl Value {
    fn size(&self) -> Option<usize> {
        if let Self::Int(value) = self { usize::try_from(*value).ok() } else { None }
    }

    fn sizes(&self) -> Option<Vec<usize>> {
        if let Self::Tuple(values) = self { values.iter().map(|value| value.size()).collect() } else { None }
    }
}

fn take<'a>(stream: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let left = stream.len();
    stream
        .split_off(..count)
        .ok_or_else(|| format!("it ends early: {count} bytes are needed, {left} are left"))
}

fn byte(stream: &mut &[u8]) -> Result<u8> {
    Ok(take(stream, 1)?.first().copied().unwrap_or_default())
}

fn word(stream: &mut &[u8]) -> Result<[u8; 4]> {
    Ok(take(stream, 4)?.first_chunk().copied().unwrap_or_default())
}

fn line(stream: &mut &[u8]) -> Result<String> {
    let end = stream.iter().position(|&b| b == b'\n').ok_or("it ends within a name")?;
    let line = String::from_utf8_lossy(take(stream, end)?).into_owned();
    take(stream, 1)?;
    Ok(line)
}

/// Runs one pickle and leaves the stream behind its end.
fn run(stream: &mut &[u8]) -> Result<Rc<Value>> {
    let mut machine = Machine::default();
    for _ in 0..MAX_STEPS {
        if let Some(result) = machine.step(stream)? {
            return Ok(result);
        }
    }
    Err(format!("a pickle has more than {MAX_STEPS} instructions"))
}

#[derive(Debug, Default)]
struct Machine {
    stack: Vec<Rc<Value>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Rc<Value>>,
}

impl Machine {
    fn pop(&mut self) -> Result<Rc<Value>> {
        self.stack.pop().ok_or_else(|| "its pickle takes more than it has".to_owned())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Rc::new(value));
    }

    /// Takes the values since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Rc<Value>>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or("its pickle has no mark")?))
    }

    fn tuple(&mut self, size: usize) -> Result<()> {
        let begin = self.stack.len().checked_sub(size).ok_or("its pickle takes more than it has")?;
        let values = self.stack.split_off(begin);
        self.push(Value::Tuple(values));
        Ok(())
    }

    fn set(&mut self, pairs: Vec<Rc<Value>>) -> Result<()> {
        let target = self.pop()?;
        let Value::Dict(entries) = &*target else {
            return Err("its pickle fills what is no dict".to_owned());
        };
        let mut entries = entries.clone();
        let pairs = pairs.as_chunks().0.iter();
        entries.extend(pairs.map(|[key, value]| (Rc::clone(key), Rc::clone(value))));
        self.push(Value::Dict(entries));
        Ok(())
    }

    fn remember(&mut self, number: u32) -> Result<()> {
        let value = self.stack.last().ok_or("its pickle remembers nothing")?;
        self.memo.insert(number, Rc::clone(value));
        Ok(())
    }

    fn recall(&mut self, number: u32) -> Result<()> {
        let value = self.memo.get(&number).ok_or("its pickle recalls what it never had")?;
        self.stack.push(Rc::clone(value));
        Ok(())
    }

    /// Executes one instruction; returns the result if it was the last one. Codes as in CPython's `pickle.py`.
    fn step(&mut self, stream: &mut &[u8]) -> Result<Option<Rc<Value>>> {
        match byte(stream)? {
            // PROTO
            0x80 => drop(byte(stream)?),
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            // NONE, NEWTRUE, NEWFALSE: ignored
            b'N' | 0x88 | 0x89 => self.push(Value::Nothing),
            b'K' => {
                let value = byte(stream)?;
                self.push(Value::Int(value.into()));
            }
            b'M' => {
                let bytes = take(stream, 2)?.first_chunk().copied().unwrap_or_default();
                self.push(Value::Int(u16::from_le_bytes(bytes).into()));
            }
            b'J' => {
                let value = i32::from_le_bytes(word(stream)?);
                self.push(Value::Int(value.into()));
            }
            // LONG1
            0x8a => {
                let size = byte(stream)?;
                let digits = take(stream, size.into())?.to_vec();
                self.push(Value::Long(digits));
            }
            // BINUNICODE
            b'X' => {
                let size = usize::try_from(u32::from_le_bytes(word(stream)?)).unwrap_or(usize::MAX);
                let text = String::from_utf8_lossy(take(stream, size)?).as_ref().into();
                self.push(Value::Text(text));
            }
            b'c' => {
                let name = format!("{} {}", line(stream)?, line(stream)?);
                self.push(Value::Global(name));
            }
            b'q' => {
                let number = byte(stream)?;
                self.remember(number.into())?;
            }
            b'r' => {
                let number = u32::from_le_bytes(word(stream)?);
                self.remember(number)?;
            }
            b'h' => {
                let number = byte(stream)?;
                self.recall(number.into())?;
            }
            b'j' => {
                let number = u32::from_le_bytes(word(stream)?);
                self.recall(number)?;
            }
            b't' => {
                let values = self.since_mark()?;
                self.push(Value::Tuple(values));
            }
            // TUPLE1, TUPLE2, TUPLE3
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            // APPENDS
            b'e' => {
                let values = self.since_mark()?;
                let target = self.pop()?;
                let Value::List(list) = &*target else {
                    return Err("its pickle appends to what is no list".to_owned());
                };
                let list = list.iter().cloned().chain(values).collect();
                self.push(Value::List(list));
            }
            // SETITEM
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            // SETITEMS
            b'u' => {
                let pairs = self.since_mark()?;
                self.set(pairs)?;
            }
            // BUILD: attributes, which are of no account here
            b'b' => drop(self.pop()?),
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Storage(storage(&id)?));
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push(call(&function, &arguments)?);
            }
            other => {
                return Err(format!(
                    "its pickle has the instruction {other:#04x}, which no state dict needs"
                ));
            }
        }
        Ok(None)
    }
}

/// Returns the name of the storage that a persistent id means: ("storage", type, name, device, count of elements, view).
fn storage(id: &Value) -> Result<Rc<str>> {
    if let Value::Tuple(parts) = id
        && let [_, kind, name, ..] = &parts[..]
        && let (Value::Global(kind), Value::Text(name)) = (&**kind, &**name)
    {
        if kind == "torch FloatStorage" {
            return Ok(Rc::clone(name));
        }
        return Err(format!("a tensor is of {kind}, expected torch FloatStorage"));
    }
    Err("a tensor names no storage".to_owned())
}

/// Evaluates a call; the pickle of a state dict calls two functions.
fn call(function: &Value, arguments: &Value) -> Result<Value> {
    let (Value::Global(function), Value::Tuple(arguments)) = (function, arguments) else {
        return Err("its pickle calls what cannot be called".to_owned());
    };
    match (&function[..], &arguments[..]) {
        ("collections OrderedDict", _) => Ok(Value::Dict(Vec::new())),
        ("torch._utils _rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
            let Value::Storage(storage) = &**storage else {
                return Err("a tensor has no storage".to_owned());
            };
            let view = || {
                Some(StorageView {
                    storage: Rc::clone(storage),
                    offset: offset.size()?,
                    shape: shape.sizes()?,
                    strides: strides.sizes()?,
                })
            };
            view().map(Value::Tensor).ok_or_else(|| "a tensor has no shape".to_owned())
        }
        _ => Err(format!("its pickle calls {function}, which no state dict needs")),
    }
}
