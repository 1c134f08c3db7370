//! The weights inside an ONNX file: its initializers, and which convolution uses which.

use std::collections::HashMap;

use candle_core::Tensor;
use prost::Message;

use super::{Element, MAX_TENSOR_BYTES, reserve};

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

/// Returns the weights and biases of all convolutions as a state dict: those of the node `/conv1/conv1.0/Conv` become
/// `conv1.conv1.0.weight` and `conv1.conv1.0.bias`. The weights must be inside the file.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    let model = proto::Model::decode(bytes).map_err(|e| format!("it is not ONNX: {e}"))?;
    let graph = model.graph.ok_or("it has no graph")?;
    let mut budget = MAX_TENSOR_BYTES;
    let mut initializers = HashMap::new();
    for initializer in graph.initializer.into_iter().filter(|t| t.data_type == FLOAT) {
        let name = initializer.name.clone();
        let tensor = tensor(initializer, &mut budget).map_err(|e| format!("tensor `{name}`: {e}"))?;
        initializers.insert(name, tensor);
    }
    let convolutions = graph.node.iter().filter(|node| node.op_type == "Conv");
    let named = convolutions.flat_map(|node| {
        let name = node.name.strip_suffix("/Conv").unwrap_or(&node.name);
        let name = name.trim_start_matches('/').replace('/', ".");
        let inputs = ["weight", "bias"].into_iter().zip(node.input.iter().skip(1));
        inputs.map(move |(part, input)| (format!("{name}.{part}"), input))
    });
    Ok(named.filter_map(|(name, input)| Some((name, initializers.get(input)?.clone()))).collect())
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
