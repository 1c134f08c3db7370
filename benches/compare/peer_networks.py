"""The networks in their usual Python stacks, one workload a process: what `networks.py` times ours against.

peer_networks.py inception BATCH THREADS CACHE | mobilefacenet BATCH THREADS MODEL | mtcnn KIND THREADS FILE...

Says `ready`, then for each line that it reads, does the work once and answers with the milliseconds.
"""

import os
import sys
import time

import numpy as np

MASK = (1 << 64) - 1


def formula(name, shape):
    """The numbers of the tests' formula weights, in [-1, 1): see `backend/vision/tests/common/mod.rs`."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) & MASK
    z = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64((state + 0x9E3779B97F4A7C15) & MASK)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).reshape(shape)


def fill(network):
    import torch

    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        values = formula(name, tuple(tensor.shape))
        if tensor.dim() == 4:
            values *= np.sqrt(6.0 / np.prod(tensor.shape[1:]))
        elif tensor.dim() == 2:
            values *= np.sqrt(3.0 / tensor.shape[1])
        elif name.endswith("running_var"):
            values = 1 + 0.5 * values
        elif (".bn." in name or name.startswith("last_bn")) and name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        tensor.copy_(torch.from_numpy(values.astype(np.float32)))


def inception_graph(batch, cache):
    """Inception-ResNet v1 of facenet-pytorch as ONNX, exported once. The speed does not hang on the weights."""
    path = os.path.join(cache, f"inception_resnet_v1_b{batch}.onnx")
    if not os.path.exists(path):
        import torch
        from facenet_pytorch import InceptionResnetV1

        network = InceptionResnetV1(pretrained=None, classify=False).eval()
        with torch.no_grad():
            fill(network)
        os.makedirs(cache, exist_ok=True)
        torch.onnx.export(network, (torch.zeros(batch, 3, 160, 160),), path + ".part", dynamo=True,
                          external_data=False, verbose=False)
        os.replace(path + ".part", path)
    return path


def session_run(path, shape, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: formula("input", shape).astype(np.float32)}
    return lambda: session.run(None, feed)


def mtcnn_run(kind, threads, files):
    import torch
    from facenet_pytorch import MTCNN
    from PIL import Image

    torch.set_num_threads(threads)
    detector = MTCNN(keep_all=True, device="cpu")
    pictures = [Image.open(file).convert("RGB") for file in files]
    if kind == "crop":
        pictures = [p.crop(((p.width - 150) // 2, (p.height - 150) // 2,
                            (p.width - 150) // 2 + 150, (p.height - 150) // 2 + 150)) for p in pictures]

    def run():
        for picture in pictures:
            detector.detect(picture, landmarks=True)

    return run, len(pictures)


def main():
    workload, first, threads, *rest = sys.argv[1:]
    threads, units = int(threads), 1
    if workload == "inception":
        run = session_run(inception_graph(int(first), rest[0]), (int(first), 3, 160, 160), threads)
    elif workload == "mobilefacenet":
        run = session_run(rest[0], (int(first), 3, 112, 112), threads)
    elif workload == "mtcnn":
        run, units = mtcnn_run(first, threads, rest)
    else:
        sys.exit(f"there is no workload {workload}")
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print((time.perf_counter() - start) * 1e3 / units, flush=True)


if __name__ == "__main__":
    main()
