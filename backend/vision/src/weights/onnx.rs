//! The weights inside an ONNX file: its initializers, and which convolution uses which.

use std::{collections::HashMap, path::Path};

use candle_core::Tensor;
use prost::Message;

use super::{Element, MAX_TENSOR_BYTES, read_file, reserve};
use crate::ModelError;

/// The parts of `onnx.proto` (ONNX 1.16, `onnx/onnx.proto`) that hold weights.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Model {
        #[prost(message, optional, tag = "7")]
        pub graph: Option<Graph>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Graph {
        #[prost(message, repeated, tag = "1")]
        pub node: Vec<Node>,
        #[prost(message, repeated, tag = "5")]
        pub initializer: Vec<Tensor>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Node {
        #[prost(string, repeated, tag = "1")]
        pub input: Vec<String>,
        #[prost(string, tag = "3")]
        pub name: String,
        #[prost(string, tag = "4")]
        pub op_type: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Tensor {
        #[prost(int64, repeated, tag = "1")]
        pub dims: Vec<i64>,
        #[prost(int32, tag = "2")]
        pub data_type: i32,
        #[prost(float, repeated, tag = "4")]
        pub float_data: Vec<f32>,
        #[prost(string, tag = "8")]
        pub name: String,
        #[prost(bytes = "vec", tag = "9")]
        pub raw_data: Vec<u8>,
    }
}

/// `TensorProto.DataType.FLOAT`
const FLOAT: i32 = 1;

/// The convolutions of an ONNX graph.
#[derive(Debug)]
pub struct OnnxWeights {
    origin: String,
    tensors: HashMap<String, Tensor>,
    /// Node name to the names of its weight and bias.
    convolutions: HashMap<String, (String, String)>,
}

impl OnnxWeights {
    /// Reads an ONNX file whose weights are inside it.
    ///
    /// # Errors
    ///
    /// [`ModelError::Missing`], [`ModelError::Unreadable`], [`ModelError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        Self::from_bytes(&read_file(path)?, &path.display().to_string())
    }

    /// As [`Self::read`], from bytes; `origin` names them in errors.
    ///
    /// # Errors
    ///
    /// [`ModelError::Malformed`].
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, ModelError> {
        Self::parse(bytes, origin)
            .map_err(|reason| ModelError::Malformed { origin: origin.to_owned(), reason })
    }

    fn parse(bytes: &[u8], origin: &str) -> Result<Self, String> {
        let model = proto::Model::decode(bytes).map_err(|e| format!("it is not ONNX: {e}"))?;
        let graph = model.graph.ok_or("it has no graph")?;
        let mut budget = MAX_TENSOR_BYTES;
        let mut tensors = HashMap::new();
        for initializer in graph.initializer.into_iter().filter(|t| t.data_type == FLOAT) {
            let name = initializer.name.clone();
            let tensor = tensor(initializer, &mut budget).map_err(|e| format!("tensor `{name}`: {e}"))?;
            tensors.insert(name, tensor);
        }
        let convolutions = graph.node.into_iter().filter(|n| n.op_type == "Conv").filter_map(|node| {
            let mut inputs = node.input.into_iter().skip(1);
            Some((node.name, (inputs.next()?, inputs.next()?)))
        });
        let (origin, convolutions) = (origin.to_owned(), convolutions.collect());
        Ok(Self { origin, tensors, convolutions })
    }

    /// Returns the weights and biases of all convolutions as a state dict: those of the node `/conv1/conv1.0/Conv` become
    /// `conv1.conv1.0.weight` and `conv1.conv1.0.bias`.
    pub(super) fn state_dict(&self) -> Vec<(String, Tensor)> {
        let tensors = self.convolutions.iter().flat_map(|(node, (weight, bias))| {
            let name = node.strip_suffix("/Conv").unwrap_or(node).trim_start_matches('/').replace('/', ".");
            [("weight", weight), ("bias", bias)].map(|(part, tensor)| (format!("{name}.{part}"), tensor))
        });
        tensors.filter_map(|(name, tensor)| Some((name, self.tensors.get(tensor)?.clone()))).collect()
    }

    /// Returns weight and bias of the convolution `node`, whose weight must have the given shape, and its bias as many elements
    /// as the weight has outputs.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoTensor`], [`ModelError::TensorShape`].
    pub fn convolution(&self, node: &str, shape: &[usize; 4]) -> Result<(Tensor, Tensor), ModelError> {
        let missing =
            |name: &str| ModelError::NoTensor { origin: self.origin.clone(), name: name.to_owned() };
        let (weight, bias) = self.convolutions.get(node).ok_or_else(|| missing(node))?;
        let get = |name: &String, expected: &[usize]| {
            let tensor = self.tensors.get(name).ok_or_else(|| missing(name))?;
            if tensor.dims() == expected {
                return Ok(tensor.clone());
            }
            let (origin, name) = (self.origin.clone(), format!("{node}: {name}"));
            let (expected, found) = (expected.to_vec(), tensor.dims().to_vec());
            Err(ModelError::TensorShape { origin, name, expected, found })
        };
        Ok((get(weight, shape)?, get(bias, &[shape[0]])?))
    }
}

fn tensor(proto: proto::Tensor, budget: &mut u64) -> Result<Tensor, String> {
    let shape = proto.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| format!("it has the shape {:?}", proto.dims))?;
    let elements = reserve(budget, &shape)?;
    let bytes = if proto.raw_data.is_empty() {
        proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect()
    } else {
        proto.raw_data
    };
    if bytes.len() != elements * Element::F32.bytes() {
        return Err(format!("{elements} elements are stored in {} bytes", bytes.len()));
    }
    Element::F32.tensor(&bytes, &shape)?.ok_or_else(|| "it holds no numbers".to_owned())
}
