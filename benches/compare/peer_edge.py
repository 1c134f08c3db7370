"""The edge in the usual Python stack, as the thesis' program had it: OpenCV decodes, the detector runs in ONNX Runtime, and
each face is written as a small JPEG. The peer of `edge.py`.

peer_edge.py detect VIDEO MODEL FOLDER   prints the frames and the seconds that they took, without the start
peer_edge.py infer MODEL RUNS            prints the CPU milliseconds of one inference of the stripped model, one thread
"""

import os
import sys
import time

import cv2
import numpy
import onnx
import onnxruntime

SCORE, OVERLAP, MARGIN, LEAST, LONGEST, QUALITY = 0.7, 0.3, 0.25, 30, 150, 90


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def select(boxes, scores):
    """Non-maximum suppression; the boxes that stay."""
    area = numpy.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    order, kept = numpy.argsort(-scores), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        corners = numpy.concatenate([numpy.maximum(boxes[first, :2], boxes[rest, :2]),
                                     numpy.minimum(boxes[first, 2:], boxes[rest, 2:])], axis=1)
        common = numpy.prod(numpy.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
        order = rest[common <= OVERLAP * (area[first] + area[rest] - common)]
    return boxes[kept]


def write_crop(frame, box, path):
    height, width = frame.shape[:2]
    margin = MARGIN * (box[3] - box[1])
    left, top = (int(max(0, edge - margin)) for edge in box[:2])
    right, bottom = int(min(width, box[2] + margin)), int(min(height, box[3] + margin))
    if min(right - left, bottom - top) < LEAST:
        return
    crop = frame[top:bottom, left:right]
    scale = LONGEST / max(crop.shape[:2])
    if scale < 1:
        crop = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(path, crop, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def detect(video, model, folder):
    cv2.setNumThreads(1)
    network = session(model)
    name, (height, width) = network.get_inputs()[0].name, network.get_inputs()[0].shape[2:]
    capture, frames, begun = cv2.VideoCapture(video), 0, time.perf_counter()
    while True:
        there, frame = capture.read()
        if not there:
            break
        frames += 1
        small = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (width, height)).astype(numpy.float32)
        scores, boxes = network.run(None, {name: ((small - 127) / 128).transpose(2, 0, 1)[None]})
        sure = scores[0, :, 1] > SCORE
        found = select(boxes[0][sure] * numpy.tile(frame.shape[1::-1], 2), scores[0, sure, 1])
        for number, box in enumerate(found):
            write_crop(frame, box, os.path.join(folder, f"{frames:06}_{number}.jpg"))
    print(frames, time.perf_counter() - begun)


def infer(model, runs):
    graph = onnx.load(model)
    # Weights that are inputs too cannot be folded into the operations.
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [one for one in graph.graph.input if one.name not in weights]
    del graph.graph.input[:]
    graph.graph.input.extend(inputs)
    network = session(graph.SerializeToString())
    shape = network.get_inputs()[0].shape
    feed = {network.get_inputs()[0].name: numpy.random.default_rng(1).random(shape, dtype=numpy.float32)}
    network.run(None, feed)
    times = []
    for _ in range(int(runs)):
        begun = time.process_time()
        network.run(None, feed)
        times.append(time.process_time() - begun)
    print(1000 * sorted(times)[len(times) // 2])


if __name__ == "__main__":
    {"detect": detect, "infer": infer}[sys.argv[1]](*sys.argv[2:])
