//! PyTorch state dicts: the pickle of names, shapes and strides, and the storages it points into.
//!
//! The pickle is read by a machine that supports only the operations of state dicts, calls nothing, and stores every
//! value once, however often the memo repeats it; candle's own trusts lengths, copies repeated values, and rejects the
//! ten-byte number that the legacy format begins with. Formats: CPython `Lib/pickletools.py`, PyTorch
//! `torch/serialization.py` (`_legacy_save`, `_save`).

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    io::{Cursor, Read},
};

use candle_core::Tensor;

use super::{Element, MAX_TENSOR_BYTES, reserve};

/// Maximum length of a pickle. That of Inception-ResNet v1 has 140 kB.
const MAX_PICKLE_BYTES: usize = 16 << 20;
/// Maximum number of values in a pickle.
const MAX_VALUES: usize = 4 << 20;
/// The magic number of the legacy format, as the bytes of a Python integer.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_PROTOCOL: i64 = 1001;

type Tensors = Vec<(String, Tensor)>;
type Result<T> = std::result::Result<T, String>;

/// Reads the format since PyTorch 1.6: a zip archive of `<name>/data.pkl` and `<name>/data/<key>`.
pub(super) fn read_zip(bytes: &[u8]) -> Result<Tensors> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let names = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect::<HashSet<_>>();
    let Some(prefix) = names.iter().find_map(|name| name.strip_suffix("data.pkl")) else {
        return Err("the archive has no data.pkl".to_owned());
    };
    let mut read = |name: String, limit: usize| -> Result<Vec<u8>> {
        let file = archive.by_name(&name).map_err(|e| format!("{name}: {e}"))?;
        let mut content = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut content).map_err(|e| format!("{name}: {e}"))?;
        if content.len() > limit { Err(format!("{name} has more than {limit} bytes")) } else { Ok(content) }
    };
    // Absent before PyTorch 2.1, which wrote on little-endian machines only.
    if names.contains(&format!("{prefix}byteorder")) && read(format!("{prefix}byteorder"), 16)? != b"little" {
        return Err("it was written on a big-endian machine".to_owned());
    }
    let pickle = read(format!("{prefix}data.pkl"), MAX_PICKLE_BYTES)?;
    let (machine, root) = Machine::run(&mut pickle.as_slice())?;
    let views = machine.state_dict(root)?;
    let mut storages = HashMap::new();
    for view in &views {
        if matches!(view.storage.element, Element::Other(_)) || storages.contains_key(&view.storage.key) {
            continue;
        }
        let size = view.storage.bytes()?;
        let content = read(format!("{prefix}data/{}", view.storage.key), size)?;
        if content.len() != size {
            return Err(format!(
                "storage {} has {} bytes instead of {size}",
                view.storage.key,
                content.len()
            ));
        }
        storages.insert(view.storage.key.clone(), content);
    }
    tensors(&views, |key| storages.get(key).map(Vec::as_slice))
}

/// Reads the legacy format, before PyTorch 1.6: pickles of a magic number, the version of the protocol, information on the system,
/// the state dict and the keys of the storages, and then the storages, each after its number of elements.
pub(super) fn read_legacy(mut bytes: &[u8]) -> Result<Tensors> {
    let stream = &mut bytes;
    let (machine, magic) = Machine::run(stream)?;
    if !matches!(machine.value(magic)?, Value::BigInt(digits) if *digits == LEGACY_MAGIC) {
        return Err("it does not begin as a PyTorch file".to_owned());
    }
    let (machine, version) = Machine::run(stream)?;
    if !matches!(machine.value(version)?, Value::Int(LEGACY_PROTOCOL)) {
        return Err("the version of its protocol is not 1001".to_owned());
    }
    let (machine, system) = Machine::run(stream)?;
    if !machine.is_little_endian(system)? {
        return Err("it was written on a big-endian machine".to_owned());
    }
    let (machine, root) = Machine::run(stream)?;
    let views = machine.state_dict(root)?;
    let (machine, keys) = Machine::run(stream)?;
    let keys = machine.strings(keys)?;

    let declared: HashMap<&str, &Storage> =
        views.iter().map(|v| (v.storage.key.as_str(), &v.storage)).collect();
    let mut storages = HashMap::new();
    for key in &keys {
        let Some(storage) = declared.get(key.as_str()) else {
            return Err(format!("no tensor says what storage {key} holds"));
        };
        let count = stream.split_off(..8).and_then(|b| Some(i64::from_le_bytes(*b.first_chunk()?)));
        if count.and_then(|c| usize::try_from(c).ok()) != Some(storage.elements) {
            return Err(format!(
                "storage {key} does not have the {} elements of its tensor",
                storage.elements
            ));
        }
        let size = storage.bytes()?;
        let left = stream.len();
        let Some(content) = stream.split_off(..size) else {
            return Err(format!("it ends early: storage {key} needs {size} bytes, {left} are left"));
        };
        storages.insert(key.as_str(), content);
    }
    tensors(&views, |key| storages.get(key).copied())
}

fn tensors<'a>(views: &[View], storage: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Tensors> {
    let mut budget = MAX_TENSOR_BYTES;
    let mut tensors = Vec::new();
    for view in views {
        if matches!(view.storage.element, Element::Other(_)) {
            continue;
        }
        let name = &view.name;
        let elements = reserve(&mut budget, &view.shape)?;
        let Some(content) = storage(&view.storage.key) else {
            return Err(format!("storage {} of tensor `{name}` is missing", view.storage.key));
        };
        let Some(bytes) = view.gather(content, elements) else {
            return Err(format!("tensor `{name}` reaches beyond its storage"));
        };
        if let Some(tensor) = view.storage.element.tensor(&bytes, &view.shape)? {
            tensors.push((name.clone(), tensor));
        }
    }
    Ok(tensors)
}

#[derive(Debug, Clone)]
struct Storage {
    element: Element,
    key: String,
    elements: usize,
}

impl Storage {
    fn bytes(&self) -> Result<usize> {
        let bytes = self.elements.checked_mul(self.element.bytes());
        bytes.ok_or_else(|| format!("storage {} has {} elements", self.key, self.elements))
    }
}

/// A tensor as the state dict describes it.
#[derive(Debug)]
struct View {
    name: String,
    storage: Storage,
    /// In elements, as the strides.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Returns the bytes of its `count` elements in row-major order; MTCNN's published weights are stored in column-major
    /// order.
    fn gather<'a>(&self, content: &'a [u8], count: usize) -> Option<Cow<'a, [u8]>> {
        let width = self.storage.element.bytes();
        if self.shape.len() != self.strides.len() {
            return None;
        }
        if self.is_contiguous() {
            let start = self.offset.checked_mul(width)?;
            return content.get(start..start.checked_add(count.checked_mul(width)?)?).map(Cow::Borrowed);
        }
        let mut bytes = Vec::with_capacity(count.checked_mul(width)?);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let steps = index.iter().zip(&self.strides);
            let at =
                steps.into_iter().try_fold(self.offset, |at, (i, s)| at.checked_add(i.checked_mul(*s)?))?;
            let start = at.checked_mul(width)?;
            bytes.extend_from_slice(content.get(start..start.checked_add(width)?)?);
            // Advances to the next element: the last index first, like an odometer.
            for (i, side) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *side {
                    break;
                }
                *i = 0;
            }
        }
        Some(Cow::Owned(bytes))
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1usize;
        self.shape.iter().zip(&self.strides).rev().all(|(&side, &stride)| {
            let fits = side == 1 || stride == expected;
            expected = expected.saturating_mul(side);
            fits
        })
    }
}

/// Index of a value in [`Machine::values`].
type Id = usize;

#[derive(Debug)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than eight bytes, little-endian.
    BigInt(Vec<u8>),
    /// A number that is not used in state dicts.
    Float,
    Text(String),
    /// Tuples and lists.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// `module name`
    Global(String),
    /// A call that Python would have made, with its arguments. Never made.
    Call(Id, Id),
    Persistent(Id),
}

/// A pickle machine: values are stored in one list and referred to by index, so that repeating a value costs
/// nothing and nesting needs no stack.
struct Machine {
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Position of each open mark in the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine {
    /// Reads one pickle from `stream`, and leaves the rest. Returns its value.
    fn run(stream: &mut &[u8]) -> Result<(Self, Id)> {
        let mut machine =
            Self { values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let begin = stream.len();
        while let Some(code) = stream.split_off_first() {
            if machine.step(*code, stream)? {
                let value = machine.pop()?;
                return Ok((machine, value));
            }
            if begin - stream.len() > MAX_PICKLE_BYTES || machine.values.len() > MAX_VALUES {
                return Err(format!(
                    "its pickle has more than {MAX_PICKLE_BYTES} bytes or {MAX_VALUES} values"
                ));
            }
        }
        Err("its pickle ends early".to_owned())
    }

    /// Executes one operation. Returns whether it was the last.
    fn step(&mut self, code: u8, stream: &mut &[u8]) -> Result<bool> {
        match code {
            // PROTO
            0x80 => {
                let [version] = take(stream)?;
                if version > 4 {
                    return Err(format!("pickle protocol {version} is not known"));
                }
            }
            b'.' => return Ok(true),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            // BININT, BININT1, BININT2, LONG1, BINFLOAT
            b'J' => self.push(Value::Int(i32::from_le_bytes(take(stream)?).into())),
            b'K' => {
                let [number] = take(stream)?;
                self.push(Value::Int(number.into()));
            }
            b'M' => self.push(Value::Int(u16::from_le_bytes(take(stream)?).into())),
            0x8a => {
                let [length] = take(stream)?;
                self.push(integer(slice(stream, length.into())?));
            }
            b'G' => {
                take::<8>(stream)?;
                self.push(Value::Float);
            }
            // BINUNICODE, SHORT_BINUNICODE
            b'X' => {
                let length = u32::from_le_bytes(take(stream)?);
                self.text(stream, length as usize)?;
            }
            0x8c => {
                let [length] = take(stream)?;
                self.text(stream, length.into())?;
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (line(stream)?, line(stream)?);
                self.push(Value::Global(format!("{module} {name}")));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = format!("{} {}", self.text_of(module)?, self.text_of(name)?);
                self.push(Value::Global(global));
            }
            // EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
            b')' | b']' => self.push(Value::Sequence(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            // TUPLE, TUPLE1, TUPLE2, TUPLE3
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Sequence(items));
            }
            0x85..=0x87 => {
                let first = self.stack.len().checked_sub(usize::from(code - 0x84));
                let Some(first) = first else { return Err(underflow()) };
                let items = self.stack.split_off(first);
                self.push(Value::Sequence(items));
            }
            // APPEND, APPENDS
            b'a' => {
                let item = self.pop()?;
                self.sequence()?.push(item);
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.sequence()?.extend(items);
            }
            // SETITEM, SETITEMS
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.dict()?.push((key, value));
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                let (pairs, []) = items.as_chunks::<2>() else {
                    return Err("its pickle has a key without a value".to_owned());
                };
                let pairs = pairs.iter().map(|&[key, value]| (key, value)).collect::<Vec<_>>();
                self.dict()?.extend(pairs);
            }
            // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
            b'q' => {
                let [slot] = take(stream)?;
                self.remember(slot.into())?;
            }
            b'r' => self.remember(u32::from_le_bytes(take(stream)?))?,
            0x94 => {
                let slot = u32::try_from(self.memo.len()).map_err(|e| e.to_string())?;
                self.remember(slot)?;
            }
            b'h' => {
                let [slot] = take(stream)?;
                self.recall(slot.into())?;
            }
            b'j' => self.recall(u32::from_le_bytes(take(stream)?))?,
            // FRAME
            0x95 => {
                take::<8>(stream)?;
            }
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let is_dict =
                    matches!(self.value(callee)?, Value::Global(g) if g == "collections OrderedDict");
                self.push(if is_dict { Value::Dict(Vec::new()) } else { Value::Call(callee, arguments) });
            }
            // BUILD sets attributes; those of a state dict are versions of its modules.
            b'b' => {
                self.pop()?;
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            other => {
                return Err(format!("its pickle uses operation 0x{other:02x}, which no state dict needs"));
            }
        }
        Ok(false)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn text(&mut self, stream: &mut &[u8], length: usize) -> Result<()> {
        let text = std::str::from_utf8(slice(stream, length)?).map_err(|e| e.to_string())?;
        self.push(Value::Text(text.to_owned()));
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).ok_or_else(underflow)?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, slot: u32) -> Result<()> {
        let top = *self.stack.last().ok_or_else(underflow)?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<()> {
        let id =
            *self.memo.get(&slot).ok_or_else(|| format!("its pickle recalls {slot}, which it never put"))?;
        self.stack.push(id);
        Ok(())
    }

    fn sequence(&mut self) -> Result<&mut Vec<Id>> {
        match self.stack.last().and_then(|&id| self.values.get_mut(id)) {
            Some(Value::Sequence(items)) => Ok(items),
            _ => Err("its pickle appends to what is no list".to_owned()),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Id, Id)>> {
        match self.stack.last().and_then(|&id| self.values.get_mut(id)) {
            Some(Value::Dict(items)) => Ok(items),
            _ => Err("its pickle sets an item of what is no dict".to_owned()),
        }
    }

    fn value(&self, id: Id) -> Result<&Value> {
        self.values.get(id).ok_or_else(underflow)
    }

    fn text_of(&self, id: Id) -> Result<&str> {
        match self.value(id)? {
            Value::Text(text) => Ok(text),
            other => Err(format!("its pickle has {} instead of a text", kind(other))),
        }
    }

    fn items(&self, id: Id) -> Result<&[Id]> {
        match self.value(id)? {
            Value::Sequence(items) => Ok(items),
            other => Err(format!("its pickle has {} instead of a tuple", kind(other))),
        }
    }

    fn size(&self, id: Id) -> Result<usize> {
        match self.value(id)? {
            Value::Int(n) => usize::try_from(*n).map_err(|_| format!("its pickle has {n} as a size")),
            other => Err(format!("its pickle has {} instead of a size", kind(other))),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        self.items(id)?.iter().map(|&id| self.size(id)).collect()
    }

    fn strings(&self, id: Id) -> Result<Vec<String>> {
        self.items(id)?.iter().map(|&id| self.text_of(id).map(str::to_owned)).collect()
    }

    fn is_little_endian(&self, id: Id) -> Result<bool> {
        let Value::Dict(facts) = self.value(id)? else {
            return Err("it lacks the facts of its system".to_owned());
        };
        let is_flag = |&&(key, _): &&(Id, Id)| self.text_of(key) == Ok("little_endian");
        let flag = facts.iter().find(is_flag).map(|&(_, flag)| self.value(flag)).transpose()?;
        Ok(matches!(flag, Some(Value::Bool(true))))
    }

    /// Returns the tensors of the dict at `root`; other values are skipped.
    fn state_dict(&self, root: Id) -> Result<Vec<View>> {
        let Value::Dict(entries) = self.value(root)? else {
            return Err(format!("it holds {} instead of a state dict", kind(self.value(root)?)));
        };
        let mut views = Vec::new();
        for &(key, value) in entries {
            let (Value::Text(name), Value::Call(..)) = (self.value(key)?, self.value(value)?) else {
                continue;
            };
            if let Some(view) = self.view(name, value).map_err(|e| format!("tensor `{name}`: {e}"))? {
                views.push(view);
            }
        }
        Ok(views)
    }

    fn view(&self, name: &str, call: Id) -> Result<Option<View>> {
        // A parameter holds a tensor and whether it learns.
        let tensor = match self.call(call)? {
            Some(("torch._utils _rebuild_parameter", &[tensor, ..])) => tensor,
            _ => call,
        };
        match self.call(tensor)? {
            Some(("torch._utils _rebuild_tensor_v2", &[storage, offset, shape, strides, ..])) => {
                Ok(Some(View {
                    name: name.to_owned(),
                    storage: self.storage(storage)?,
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    strides: self.sizes(strides)?,
                }))
            }
            _ => Ok(None),
        }
    }

    /// Returns callee and arguments if the value is a call.
    fn call(&self, id: Id) -> Result<Option<(&str, &[Id])>> {
        let Value::Call(callee, arguments) = self.value(id)? else { return Ok(None) };
        let Value::Global(callee) = self.value(*callee)? else { return Ok(None) };
        Ok(Some((callee, self.items(*arguments)?)))
    }

    /// Reads `("storage", class, key, location, elements)`, in the legacy format followed by `None` or a view.
    fn storage(&self, id: Id) -> Result<Storage> {
        let Value::Persistent(id) = self.value(id)? else { return Err("its data are not stored".to_owned()) };
        let &[_, class, key, _, elements, ref view @ ..] = self.items(*id)? else {
            return Err("its storage is described by too little".to_owned());
        };
        if let [view, ..] = view
            && !matches!(self.value(*view)?, Value::None)
        {
            return Err("its storage is a part of another, which is not supported".to_owned());
        }
        let Value::Global(class) = self.value(class)? else {
            return Err("its storage has no kind".to_owned());
        };
        let element = match class.as_str() {
            "torch FloatStorage" => Element::F32,
            "torch DoubleStorage" => Element::F64,
            "torch HalfStorage" => Element::F16,
            "torch BFloat16Storage" => Element::Bf16,
            "torch LongStorage" => Element::Other(8),
            "torch IntStorage" => Element::Other(4),
            "torch ShortStorage" => Element::Other(2),
            "torch ByteStorage" | "torch CharStorage" | "torch BoolStorage" => Element::Other(1),
            other => return Err(format!("its storage is of the unknown kind `{other}`")),
        };
        Ok(Storage { element, key: self.text_of(key)?.to_owned(), elements: self.size(elements)? })
    }
}

fn underflow() -> String {
    "its pickle takes more than it put".to_owned()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::None => "None",
        Value::Bool(_) => "a truth value",
        Value::Int(_) | Value::BigInt(_) | Value::Float => "a number",
        Value::Text(_) => "a text",
        Value::Sequence(_) => "a list",
        Value::Dict(_) => "a dict",
        Value::Global(_) | Value::Call(..) => "an object",
        Value::Persistent(_) => "a storage",
    }
}

/// Reads an integer in two's complement, little-endian, of any length.
fn integer(digits: &[u8]) -> Value {
    if digits.len() > 8 {
        return Value::BigInt(digits.to_vec());
    }
    let sign = if digits.last().is_some_and(|&d| d >= 0x80) { 0xff } else { 0 };
    let mut all = [sign; 8];
    for (a, d) in all.iter_mut().zip(digits) {
        *a = *d;
    }
    Value::Int(i64::from_le_bytes(all))
}

fn slice<'a>(stream: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    stream.split_off(..length).ok_or_else(|| "its pickle ends early".to_owned())
}

fn take<const N: usize>(stream: &mut &[u8]) -> Result<[u8; N]> {
    slice(stream, N)?.try_into().map_err(|_| "its pickle ends early".to_owned())
}

/// Reads text up to a line feed.
fn line<'a>(stream: &mut &'a [u8]) -> Result<&'a str> {
    let Some(end) = stream.iter().position(|&b| b == b'\n') else {
        return Err("its pickle ends early".to_owned());
    };
    let text = slice(stream, end)?;
    slice(stream, 1)?;
    std::str::from_utf8(text).map_err(|e| e.to_string())
}
