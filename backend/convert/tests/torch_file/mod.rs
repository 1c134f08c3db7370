//! Writes state dicts as `torch.save` does, in both its forms.

use std::io::{Cursor, Write};

use candle_core::Tensor;

/// A pickle under construction.
#[derive(Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub fn op(&mut self, code: u8) -> &mut Self {
        self.0.push(code);
        self
    }

    pub fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.0.extend(format!("c{module}\n{name}\n").bytes());
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Self {
        self.op(b'X');
        self.0.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        self.0.extend(text.bytes());
        self
    }

    pub fn int(&mut self, value: usize) -> &mut Self {
        match (u8::try_from(value), u16::try_from(value)) {
            (Ok(v), _) => self.0.extend([b'K', v]),
            (_, Ok(v)) => {
                self.op(b'M');
                self.0.extend(v.to_le_bytes());
            }
            _ => {
                self.op(b'J');
                self.0.extend(i32::try_from(value).unwrap().to_le_bytes());
            }
        }
        self
    }

    pub fn tuple(&mut self, values: &[usize]) -> &mut Self {
        self.op(b'(');
        values.iter().for_each(|&v| {
            self.int(v);
        });
        self.op(b't')
    }

    pub fn ordered_dict(&mut self) -> &mut Self {
        self.global("collections", "OrderedDict").op(b')').op(b'R')
    }
}

/// One entry of a state dict.
pub struct Entry<'a> {
    pub name: &'a str,
    pub kind: &'a str,
    pub key: String,
    pub elements: usize,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl<'a> Entry<'a> {
    pub fn contiguous(name: &'a str, kind: &'a str, key: usize, shape: &[usize]) -> Self {
        let strides = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        let elements = shape.iter().product();
        Self { name, kind, key: key.to_string(), elements, offset: 0, shape: shape.to_vec(), strides }
    }
}

pub fn state_dict(entries: &[Entry<'_>], legacy: bool) -> Vec<u8> {
    let mut p = Pickle::new();
    p.ordered_dict().op(b'(');
    for entry in entries {
        p.text(entry.name).global("torch._utils", "_rebuild_tensor_v2").op(b'(');
        p.op(b'(')
            .text("storage")
            .global("torch", entry.kind)
            .text(&entry.key)
            .text("cpu")
            .int(entry.elements);
        if legacy {
            p.op(b'N');
        }
        p.op(b't').op(b'Q').int(entry.offset).tuple(&entry.shape).tuple(&entry.strides).op(0x89);
        p.ordered_dict().op(b't').op(b'R');
    }
    p.op(b'u');
    // The versions of the modules, as an attribute of the dict.
    p.op(b'}').text("_metadata").ordered_dict().op(b's').op(b'b').op(b'.');
    p.0
}

/// Returns the bytes before the state dict in the format before PyTorch 1.6.
pub fn legacy_head() -> Vec<u8> {
    let mut head = vec![0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    head.extend(Pickle::new().int(1001).op(b'.').0.iter());
    let mut system = Pickle::new();
    system.op(b'}').op(b'(').text("protocol_version").int(1001).text("little_endian").op(0x88);
    system.text("type_sizes").op(b'}').op(b'(').text("short").int(2).op(b'u').op(b'u').op(b'.');
    head.extend(system.0);
    head
}

/// Returns the keys and the storages, which follow the state dict.
pub fn legacy_tail(storages: &[(String, usize, Vec<u8>)]) -> Vec<u8> {
    let mut keys = Pickle::new();
    keys.op(b']').op(b'(');
    storages.iter().for_each(|(key, ..)| {
        keys.text(key);
    });
    keys.op(b'e').op(b'.');
    let mut tail = keys.0;
    for (_, elements, content) in storages {
        tail.extend((*elements as u64).to_le_bytes());
        tail.extend(content);
    }
    tail
}

pub fn archive(pickle: &[u8], storages: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut writer = ::zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored =
        ::zip::write::SimpleFileOptions::default().compression_method(::zip::CompressionMethod::Stored);
    let mut add = |name: String, content: &[u8]| {
        writer.start_file(name, stored).unwrap();
        writer.write_all(content).unwrap();
    };
    add("archive/data.pkl".to_owned(), pickle);
    add("archive/byteorder".to_owned(), b"little");
    for (key, content) in storages {
        add(format!("archive/data/{key}"), content);
    }
    add("archive/version".to_owned(), b"3\n");
    writer.finish().unwrap().into_inner()
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn entries(tensors: &[(String, Tensor)]) -> Vec<Entry<'_>> {
    let entry = |(i, (name, tensor))| Entry::contiguous(name, "FloatStorage", i, Tensor::dims(tensor));
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).enumerate().map(entry).collect()
}

/// Returns a file in the format before PyTorch 1.6.
pub fn legacy(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let storage = |(i, (_, t)): (usize, &(String, Tensor))| (i.to_string(), t.elem_count(), bytes_of(t));
    let storages: Vec<_> = tensors.iter().enumerate().map(storage).collect();
    [legacy_head(), state_dict(&entries(tensors), true), legacy_tail(&storages)].concat()
}

/// Returns a file in the format since PyTorch 1.6.
pub fn zip(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let storages: Vec<_> =
        tensors.iter().enumerate().map(|(i, (_, t))| (i.to_string(), bytes_of(t))).collect();
    archive(&state_dict(&entries(tensors), false), &storages)
}
