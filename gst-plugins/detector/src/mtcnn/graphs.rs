//! Builds MTCNN's three networks as ONNX graphs from their weights, in memory, so that ONNX Runtime runs them like the other
//! detectors. Layers and names as in facenet-pytorch's `PNet`, `RNet` and `ONet`.
//!
//! Written in the protobuf wire format, with the field numbers of `onnx.proto` (IR version 7, opset 13).

use super::weights::{StateDict, Tensor};
use crate::onnx_strip::push_varint;

const IR_VERSION: u64 = 7;
const OPSET: u64 = 13;
/// `TensorProto.FLOAT`
const FLOAT: u64 = 1;
/// `AttributeProto.AttributeType`
const INT: u64 = 2;
const INTS: u64 = 7;

/// The output with a score for "no face" and one for "face".
pub(super) const SCORES: &str = "scores";
/// The output with corrections of left, top, right and bottom.
pub(super) const BOXES: &str = "boxes";

type Result<T> = std::result::Result<T, String>;

/// Builds the first network: images `[1, 3, height, width]` to scores `[1, 2, h, w]` and boxes `[1, 4, h, w]`.
pub(super) fn proposal(weights: &StateDict) -> Result<Vec<u8>> {
    let mut graph = Graph::new(weights);
    let x = graph.convolution("input", "1", [10, 3, 3])?;
    let x = graph.pool(&x, 2);
    let x = graph.convolution(&x, "2", [16, 10, 3])?;
    let x = graph.convolution(&x, "3", [32, 16, 3])?;
    let scores = graph.head_map(&x, "conv4_1", [2, 32])?;
    graph.node("Softmax", &[&scores], SCORES, &[("axis", &[1])]);
    let boxes = graph.head_map(&x, "conv4_2", [4, 32])?;
    graph.node("Identity", &[&boxes], BOXES, &[]);
    Ok(graph.model(
        [Dim::Fixed(1), Dim::Fixed(3), Dim::Dynamic("height"), Dim::Dynamic("width")],
        [Dim::Fixed(1), Dim::Fixed(2), Dim::Dynamic("rows"), Dim::Dynamic("columns")],
        [Dim::Fixed(1), Dim::Fixed(4), Dim::Dynamic("rows"), Dim::Dynamic("columns")],
    ))
}

/// Builds the second network: crops `[n, 3, 24, 24]` to scores `[n, 2]` and boxes `[n, 4]`.
pub(super) fn refine(weights: &StateDict) -> Result<Vec<u8>> {
    let mut graph = Graph::new(weights);
    let x = graph.convolution("input", "1", [28, 3, 3])?;
    let x = graph.pool(&x, 3);
    let x = graph.convolution(&x, "2", [48, 28, 3])?;
    let x = graph.pool(&x, 3);
    let x = graph.convolution(&x, "3", [64, 48, 2])?;
    let x = graph.dense(&x, "4", [128, 576])?;
    graph.heads(&x, ["dense5_1", "dense5_2"], 128)?;
    Ok(graph.crops(24))
}

/// Builds the third network: crops `[n, 3, 48, 48]` to scores `[n, 2]` and boxes `[n, 4]`. Its landmarks are omitted, since
/// nothing at the edge uses them.
pub(super) fn output(weights: &StateDict) -> Result<Vec<u8>> {
    let mut graph = Graph::new(weights);
    let x = graph.convolution("input", "1", [32, 3, 3])?;
    let x = graph.pool(&x, 3);
    let x = graph.convolution(&x, "2", [64, 32, 3])?;
    let x = graph.pool(&x, 3);
    let x = graph.convolution(&x, "3", [64, 64, 3])?;
    let x = graph.pool(&x, 2);
    let x = graph.convolution(&x, "4", [128, 64, 2])?;
    let x = graph.dense(&x, "5", [256, 1152])?;
    graph.heads(&x, ["dense6_1", "dense6_2"], 256)?;
    Ok(graph.crops(48))
}

/// A dimension of an input or output.
#[derive(Clone, Copy)]
enum Dim {
    Fixed(u64),
    /// Determined by each run.
    Dynamic(&'static str),
}

/// A `GraphProto` under construction.
struct Graph<'a> {
    weights: &'a StateDict,
    body: Vec<u8>,
    nodes: usize,
}

impl<'a> Graph<'a> {
    const fn new(weights: &'a StateDict) -> Self {
        Self { weights, body: Vec::new(), nodes: 0 }
    }

    /// Adds a tensor of the weights, whose shape must be `shape`, with the shape `stored`.
    fn weight(&mut self, name: &str, shape: &[usize], stored: &[usize]) -> Result<()> {
        let Some(Tensor { shape: found, values }) = self.weights.get(name) else {
            return Err(format!("it has no tensor {name}"));
        };
        if found != shape {
            return Err(format!("its tensor {name} has the shape {found:?}, expected {shape:?}"));
        }
        let mut tensor = Vec::with_capacity(values.len() * 4 + 64);
        for &size in stored {
            put_number(&mut tensor, 1, size as u64);
        }
        put_number(&mut tensor, 2, FLOAT);
        put_bytes(&mut tensor, 8, name.as_bytes());
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        put_bytes(&mut tensor, 9, &raw);
        put_bytes(&mut self.body, 5, &tensor);
        Ok(())
    }

    fn plain_weight(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        self.weight(name, shape, shape)
    }

    fn node(&mut self, operator: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[u64])]) {
        let mut node = Vec::new();
        for input in inputs {
            put_bytes(&mut node, 1, input.as_bytes());
        }
        put_bytes(&mut node, 2, output.as_bytes());
        put_bytes(&mut node, 4, operator.as_bytes());
        for (name, values) in attributes {
            let mut attribute = Vec::new();
            put_bytes(&mut attribute, 1, name.as_bytes());
            // Attributes of these operators with one value are numbers, the others are lists.
            if let [value] = values {
                put_number(&mut attribute, 3, *value);
                put_number(&mut attribute, 20, INT);
            } else {
                values.iter().for_each(|&value| put_number(&mut attribute, 8, value));
                put_number(&mut attribute, 20, INTS);
            }
            put_bytes(&mut node, 5, &attribute);
        }
        put_bytes(&mut self.body, 1, &node);
    }

    /// Adds a node with a generated output name.
    fn inner(&mut self, operator: &str, inputs: &[&str], attributes: &[(&str, &[u64])]) -> String {
        self.nodes += 1;
        let output = format!("{operator}-{}", self.nodes);
        self.node(operator, inputs, &output, attributes);
        output
    }

    /// Adds a convolution and PReLU; `[out, in, side]`.
    fn convolution(&mut self, x: &str, number: &str, [out, inputs, side]: [usize; 3]) -> Result<String> {
        let [weight, bias] = [format!("conv{number}.weight"), format!("conv{number}.bias")];
        self.plain_weight(&weight, &[out, inputs, side, side])?;
        self.plain_weight(&bias, &[out])?;
        let slopes = format!("prelu{number}.weight");
        self.weight(&slopes, &[out], &[out, 1, 1])?;
        let x = self.inner("Conv", &[x, &weight, &bias], &[]);
        Ok(self.inner("PRelu", &[&x, &slopes], &[]))
    }

    /// Adds the maximum over squares of `side` pixels, every two pixels, also where the last ones reach beyond the edge.
    fn pool(&mut self, x: &str, side: u64) -> String {
        let attributes: [(&str, &[u64]); 3] =
            [("kernel_shape", &[side, side]), ("strides", &[2, 2]), ("ceil_mode", &[1])];
        self.inner("MaxPool", &[x], &attributes)
    }

    /// Adds a 1x1 convolution without an activation; `[out, in]`.
    fn head_map(&mut self, x: &str, name: &str, [out, inputs]: [usize; 2]) -> Result<String> {
        let [weight, bias] = [format!("{name}.weight"), format!("{name}.bias")];
        self.plain_weight(&weight, &[out, inputs, 1, 1])?;
        self.plain_weight(&bias, &[out])?;
        Ok(self.inner("Conv", &[x, &weight, &bias], &[]))
    }

    /// Adds a dense layer over a whole map, which was trained on columns before rows before channels; `[out, in]`.
    fn dense(&mut self, x: &str, number: &str, [out, inputs]: [usize; 2]) -> Result<String> {
        let x = self.inner("Transpose", &[x], &[("perm", &[0, 3, 2, 1])]);
        let x = self.inner("Flatten", &[&x], &[("axis", &[1])]);
        let x = self.product(&x, &format!("dense{number}"), [out, inputs])?;
        let slopes = format!("prelu{number}.weight");
        self.plain_weight(&slopes, &[out])?;
        Ok(self.inner("PRelu", &[&x, &slopes], &[]))
    }

    fn product(&mut self, x: &str, name: &str, [out, inputs]: [usize; 2]) -> Result<String> {
        let [weight, bias] = [format!("{name}.weight"), format!("{name}.bias")];
        self.plain_weight(&weight, &[out, inputs])?;
        self.plain_weight(&bias, &[out])?;
        Ok(self.inner("Gemm", &[x, &weight, &bias], &[("transB", &[1])]))
    }

    fn heads(&mut self, x: &str, [scores, boxes]: [&str; 2], inputs: usize) -> Result<()> {
        let scores = self.product(x, scores, [2, inputs])?;
        self.node("Softmax", &[&scores], SCORES, &[("axis", &[1])]);
        let boxes = self.product(x, boxes, [4, inputs])?;
        self.node("Identity", &[&boxes], BOXES, &[]);
        Ok(())
    }

    fn crops(self, side: u64) -> Vec<u8> {
        let n = Dim::Dynamic("n");
        self.model(
            [n, Dim::Fixed(3), Dim::Fixed(side), Dim::Fixed(side)],
            [n, Dim::Fixed(2)],
            [n, Dim::Fixed(4)],
        )
    }

    fn model<const N: usize>(mut self, input: [Dim; 4], scores: [Dim; N], boxes: [Dim; N]) -> Vec<u8> {
        put_bytes(&mut self.body, 2, b"mtcnn");
        put_bytes(&mut self.body, 11, &value_info("input", &input));
        put_bytes(&mut self.body, 12, &value_info(SCORES, &scores));
        put_bytes(&mut self.body, 12, &value_info(BOXES, &boxes));
        let mut opset = Vec::new();
        put_number(&mut opset, 2, OPSET);
        let mut model = Vec::with_capacity(self.body.len() + 32);
        put_number(&mut model, 1, IR_VERSION);
        put_bytes(&mut model, 8, &opset);
        put_bytes(&mut model, 7, &self.body);
        model
    }
}

fn value_info(name: &str, shape: &[Dim]) -> Vec<u8> {
    let mut dims = Vec::new();
    for dim in shape {
        let mut written = Vec::new();
        match *dim {
            Dim::Fixed(size) => put_number(&mut written, 1, size),
            Dim::Dynamic(name) => put_bytes(&mut written, 2, name.as_bytes()),
        }
        put_bytes(&mut dims, 1, &written);
    }
    let mut tensor = Vec::new();
    put_number(&mut tensor, 1, FLOAT);
    put_bytes(&mut tensor, 2, &dims);
    let mut kind = Vec::new();
    put_bytes(&mut kind, 1, &tensor);
    let mut info = Vec::new();
    put_bytes(&mut info, 1, name.as_bytes());
    put_bytes(&mut info, 2, &kind);
    info
}

/// Appends a field of the wire type 0.
fn put_number(message: &mut Vec<u8>, field: u64, value: u64) {
    push_varint(message, field << 3);
    push_varint(message, value);
}

/// Appends a field of the wire type 2: text, bytes or a message.
fn put_bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    push_varint(message, (field << 3) | 2);
    push_varint(message, value.len() as u64);
    message.extend_from_slice(value);
}
