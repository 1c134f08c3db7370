//! The element `facesink-http`: uploads face crops to the backend.

/**
 * SECTION:element-facesink-http
 * @title: facesink-http
 * @short_description: Uploads face crops to the backend
 * @see_also: facedetect, facecrop
 *
 * Takes the crops of `facecrop`, or raw video with face metadata, from which it makes the crops itself (with the same
 * properties `policy`, `margin`, `min-size` and so on), and posts them to
 * `<backend-url>/face-recognition/<endpoint>` as `multipart/form-data`.
 *
 * Like any sink, it takes frames at the speed of the pipeline's clock; `sync=false` lets a recording play as fast as it can.
 * The streaming thread waits neither for the network nor for the disk, whatever the backend does, unless
 * `drop-policy=block` is set.
 *
 * The same element is also registered as `facepipe-facesink-http`.
 *
 * ## From a crop to a request
 *
 * Up to `batch-size` crops of one camera share a request; a crop waits at most `batch-delay` milliseconds for others, one
 * second by default. Crops of 4 KB cost 11 % more bytes than their images in requests of 8, the default, and 20 % in requests
 * of one (`batch-size=1`). At most `workers` requests are in flight, over kept connections.
 *
 * Crops wait in memory, at most `max-queue` of them. When the queue is full, `drop-policy` decides: the `oldest` crop is
 * dropped (the default), or the `newest`, or the stream blocks (`block`: for recordings that are replayed as fast as
 * possible; a live source would lose frames). Dropped crops are counted as `dropped`.
 *
 * A tracked crop has its `track_id`, and its request the `run_id` that the id belongs to: a UUID that `facetrack` draws at each of its starts
 * (behind another tracker, this element does). The backend decides from all crops of a track together whom it shows.
 *
 * ## When the backend is unavailable
 *
 * Each crop has a `key`, which stays the same however often it is sent, so that the backend stores no face twice.
 *
 * | the backend | what happens | on the bus |
 * |---|---|---|
 * | accepts a crop (2xx) | it is done | `facepipe-result` |
 * | rejects one of several images (`errors` in its response) | that crop is done, the others are not sent again | `facepipe-rejected`, and a warning for the first in a row |
 * | rejects a request with an error of its own (400, 413, 415, 422, with `error.code` in JSON) | its crops are sent one by one; those rejected again are done | the same |
 * | is overloaded (408, 423, 425, 429) | crops wait, as long as `Retry-After` says (at most 5 minutes), else for the back-off | `facepipe-backend` with state `busy` |
 * | fails (5xx), is not the one that responds (3xx, other 4xx, a web page or anything else that is not in its format: a proxy, a network's login page, another server), cannot be reached, gives no answer within `timeout`, or breaks off in the middle of it | crops wait likewise | a warning, and `facepipe-backend` with state `away` |
 * | fails with 500 on one crop five times, at last when it is sent alone | that crop is given up | as rejected |
 * | rejects the token (401, 403) | crops wait likewise; `token-file` is read again before each attempt | a warning, and `facepipe-backend` with state `unauthorized` |
 * | is healthy again | everything is sent | an info message, and `facepipe-backend` with state `ok` |
 *
 * Only an error in the backend's own format rejects a crop for good. Crops that a proxy rejects as too large together (413)
 * are sent one by one. `camera-id` and `camera-location`, which every request has, must be as the backend accepts them: 1 to
 * 200 and 0 to 200 characters, without control characters. Others are an error at the start, and a warning while playing.
 *
 * The back-off grows from 0.5 to 10 seconds, with jitter; while the backend is unhealthy, at most one probe request is in
 * flight. Each state is reported once until it is healthy again. `retries` limits how often a crop is sent again if there
 * is no spool; then it is given up and reported as rejected, unless the token was the reason.
 *
 * ## The spool
 *
 * With `spool-dir`, crops are written to disk while the backend is unavailable or rejects the token, when `max-queue` is half
 * full because the backend is too slow, when the end of the stream has waited for `eos-timeout`, and when the element
 * stops. They survive the end of the process, `kill -9` and a power failure, and are sent afterwards, or by the next run:
 * live crops first, spooled ones in order of capture when no live ones wait. Each keeps its key, time, box, track, run, camera
 * and location. `retries` says after how many consecutive failures crops are spooled.
 *
 * The files take at most `spool-max-bytes`; beyond that the oldest are dropped, counted as `spool-dropped`. A disk that is
 * full or cannot be written causes one warning; the crops then stay in memory, and the disk is tried again after 10 seconds.
 * Damaged files are renamed to `*.damaged`, counted, and dropped first; foreign files are left alone. Faces are biometric
 * data: the folder is created with mode 0700 and its files with 0600, and a folder that others can access is rejected; on a
 * mount without permission bits (vfat, exfat, NTFS, CIFS) a mount option helps, which the error names. Each element needs a
 * folder of its own, on a local disk.
 *
 * At the end of the stream the element waits at most `eos-timeout` seconds for crops in the queue or on the spool, and warns of
 * crops that were not uploaded, were rejected, or were dropped until then.
 *
 * ## Token and TLS
 *
 * `token-file`, or `token`, is sent as `Authorization: Bearer …`. The file may be replaced at any time. Neither appears in
 * messages or logs, and `token` cannot be read back.
 *
 * `ca-file` adds certificates in PEM form to those that the system trusts: those of authorities, or the backend's own, also a
 * self-signed one. That is trusted exactly as it is in the file until it expires, for the hosts in its `subjectAltName`, or
 * for any host if it has none:
 * |[
 * openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -keyout key.pem -out cert.pem -subj /CN=faces.example -addext subjectAltName=DNS:faces.example
 * ]|
 * `pinned-sha256` names the backend's public key by its SHA-256 in base64 (RFC 7469; `sha256//` may precede it, as for
 * curl). A server that proves that it has the key is then the backend, whatever names, dates and issuer its certificate has.
 * With `ca-file`, the certificate is checked as well. Separate several keys with semicolons: add the next one before the
 * backend changes to it.
 * |[
 * openssl x509 -in cert.pem -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | openssl base64
 * ]|
 *
 * `client-cert` and `client-key` are this client's own certificate and private key in PEM, by which it proves itself to a
 * backend that asks for one; without `client-key`, the key is in the file of the certificate. Changed files are read for the
 * next connection.
 *
 * Over `http://`, a token is sent to this machine only (`localhost`, loopback addresses): for another one the element refuses
 * to start, unless `allow-insecure-token` is set, since everybody on the way could read it.
 *
 * ## Proxies
 *
 * The backend is called through the proxy that `http_proxy`, `https_proxy` or `all_proxy` in the environment names
 * (`http://USER:PASSWORD@HOST:PORT`), unless `no_proxy` excepts it, as `facepipe doctor` and other programs do: https through
 * a tunnel, http by a request to the proxy. `localhost` and loopback addresses are never proxied. The same holds for
 * `otlp-endpoint`.
 *
 * ## Traces
 *
 * Each request carries `traceparent` (W3C Trace Context) and the same span's id as `X-Request-Id`, about 100 bytes: the
 * backend's traces and log lines refer to them. With `otlp-endpoint`, the element sends its own spans to an OpenTelemetry
 * collector (OTLP, protobuf over HTTP, to `v1/traces` below it; `ca-file` holds for it too): `crop`, from when it is made until
 * the backend has accepted or rejected it, in it `queue` or `spool` while it waits, and `upload`, one for each request. A
 * crop's trace id is derived from its key, so the trace continues after an outage or a restart. A request of several crops is
 * in the first one's trace, with links to and from those of the others. A crop that is dropped or given up has no span `crop`.
 * If the collector is unavailable, spans are lost, with one warning. Spans have times, counts and statuses, and no face data.
 *
 * ## Capture time
 *
 * Each crop is sent with `captured_at`: the camera's own time, if the source knows it (`rtspsrc
 * add-reference-timestamp-meta=true`), else the time at which the frame was due on the pipeline's clock. For a recording,
 * `capture-start` (RFC 3339, with its time zone) says when it began.
 *
 * The camera's clock is used while it is within `max-clock-offset` seconds (60) of this machine's. A camera whose clock was
 * reset to 2000 by a power failure gives no capture times: faces get this machine's, one warning says how far the
 * clocks differ, and `clock-refused` counts the crops. The offset holds for the whole stream: many frames have no camera time
 * (those before its first RTCP report, others if a decoder loses it), and get theirs by the offset of the clocks. A clock
 * that is set while playing, on either side, is followed after five frames that agree. For a recorder that replays over RTSP
 * with the original times, `max-clock-offset=-1` uses them as they are; 0 never uses the camera's clock. A machine whose own
 * clock was not set since it was switched on (it is before 2025) trusts a camera's that is.
 *
 * ## Messages
 *
 * - Element message `facepipe-result`, once for each crop that the backend accepted: `key` (string), `status`
 *   (uint, of the HTTP response), `captured-at` (string, RFC 3339), `track-id` (int, 0 if the faces are not
 *   tracked), `left`, `top`, `right`, `bottom` (uint, pixels of the full frame; absent for an image that is
 *   not from facecrop), `crop-left`, `crop-top`,
 *   `crop-right`, `crop-bottom` (uint, the part of the full frame that the image shows, pixels) and `picture-width`,
 *   `picture-height` (uint, the size of the image, pixels; these six are likewise absent for an image that is not from
 *   facecrop),
 *   `model-version` (string, absent if no model is trained), and `faces` (array of
 *   structures `face`, empty if there is none on the crop or the endpoint returns none): `decision` (string
 *   `known` or `unknown`), `label` (string) and `confidence` (double) of the top prediction (absent where the camera's token may
 *   not see names), `threshold`
 *   (double), `detection-confidence` (double), `box-left`, `box-top`, `box-right`, `box-bottom` (double,
 *   pixels of the crop); fields that the backend left out are absent.
 * - Element message `facepipe-rejected`, for each crop that the backend rejected for good or that was given up: `key`,
 *   `captured-at`, `track-id`, `left` to `bottom`, `crop-left` to `crop-bottom`, `picture-width` and `picture-height` as
 *   above, `status` (uint, of the last response; 0
 *   if there was none), `code` (string, the backend's error code, absent if it gave none) and `message`
 *   (string). The first in a row also comes with a warning.
 * - Element message `facepipe-backend`, when the backend's state changes: `state` (string `ok`, `busy`, `away` or
 *   `unauthorized`) and, unless it is `ok`, `status` (uint, absent if there was no response), `reason` (string) and
 *   `retry-in` (uint64, milliseconds).
 * - Element message `facepipe-stats`, every `stats-interval` seconds and at the end of the stream, with the fields of
 *   the property `stats` (uint64): `queued`, `sent`, `failed`, `dropped`, `spooled`, `spool-files`, `spool-bytes`,
 *   `spool-dropped`, `spool-damaged`, `spool-errors`, `clock-refused`, `requests`, `retries`, `bytes`, `bytes-received`,
 *   `image-bytes`, and for raw video what `facecrop` counts as left out: `below-min-size`, `below-min-quality`,
 *   `tracks-below-min-size`, `tracks-below-min-quality`, `tracks-below-certainty`, and `min-size`, the limit in effect. `bytes` are counted at the socket; `bytes / image-bytes - 1` is the overhead of the transport.
 * - Warnings about problems with the backend or the spool, once each, and an info message when the backend is healthy again.
 * - A warning, once, if raw video comes without a detector before it: after 300 frames, or at the end of the stream.
 *   (An element before this one may have warned already.)
 *
 * ## Examples
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facecrop ! facesink-http backend-url=http://127.0.0.1:8080 camera-id=gate-1 camera-location=Lobby
 * ]|
 * The same, cropped by the sink:
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facesink-http backend-url=http://127.0.0.1:8080 camera-id=gate-1 camera-location=Lobby
 * ]|
 * For permanent installations: crops that survive outages and restarts, a token, a private certification authority:
 * |[
 * gst-launch-1.0 v4l2src ! decodebin ! facedetect ! facecrop ! facesink-http backend-url=https://faces.example camera-id=gate-1 spool-dir=/var/spool/facepipe/gate-1 token-file=/etc/facepipe/token ca-file=/etc/facepipe/ca.pem
 * ]|
 * Recognise only, and print the results:
 * |[
 * gst-launch-1.0 -m v4l2src ! decodebin ! facedetect ! facesink-http endpoint=get-results
 * ]|
 */
mod imp;
mod messages;
mod settings;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facesink-http`.
    pub struct FaceSinkHttp(ObjectSubclass<imp::FaceSinkHttp>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facesink-http", FaceSinkHttp::static_type())
}
