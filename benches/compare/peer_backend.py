"""Recognition in the usual Python stack, the thesis' cloud API: Flask, facenet-pytorch's MTCNN and InceptionResnetV1, and
scikit-learn's linear SVC. The peer of `serving.py`; it answers in the form of our own API, so that one client measures both.

gunicorn --workers 2 --bind 127.0.0.1:PORT peer_backend:app
"""

import io

import numpy
import torch
from facenet_pytorch import MTCNN, InceptionResnetV1
from flask import Flask, jsonify, request
from PIL import Image
from sklearn.svm import SVC

PEOPLE, PICTURES = 10, 10

# Two workers on two cores.
torch.set_num_threads(1)
detector = MTCNN(keep_all=True, device="cpu")
# The weights do not matter to the speed.
embedder = InceptionResnetV1(pretrained=None).eval()


def trained():
    """A classifier of ten people, of unit vectors by chance."""
    vectors = numpy.random.default_rng(7).normal(size=(PEOPLE * PICTURES, 512))
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    return SVC(kernel="linear", probability=True).fit(vectors, numpy.arange(PEOPLE).repeat(PICTURES))


classifier = trained()
app = Flask(__name__)


@app.get("/readyz")
def ready():
    return jsonify(status="ready")


@app.post("/face-recognition/get-results")
def get_results():
    picture = Image.open(io.BytesIO(request.files["image"].read())).convert("RGB")
    with torch.no_grad():
        boxes, probabilities = detector.detect(picture)
        if boxes is None:
            return jsonify(model_version=1, faces=[])
        embeddings = embedder(detector.extract(picture, boxes, None)).numpy()
    names = classifier.predict_proba(embeddings)
    return jsonify(model_version=1, faces=[face(*one) for one in zip(boxes, probabilities, names)])


def face(box, probability, names):
    order = names.argsort()[::-1]
    predictions = [{"label": f"person {n}", "confidence": float(names[n])} for n in order]
    return {
        "image": 0,
        "bounding_box": dict(zip(("left", "top", "right", "bottom"), map(float, box))),
        "detection_confidence": float(probability),
        "top_prediction": predictions[0],
        "decision": "known",
        "score": 1.0,
        "threshold": 0.0,
        "all_predictions": predictions,
    }
