//! The element `facesink-http`: uploads face crops to the backend.

/**
 * SECTION:element-facesink-http
 * @title: facesink-http
 * @short_description: Uploads face crops to the backend
 * @see_also: facedetect, facecrop
 *
 * Takes the crops of `facecrop`, or raw video with face metadata, from which it then cuts the crops itself
 * (with the same properties `policy`, `margin`, `min-size` and so on), and posts them to
 * `<backend-url>/face-recognition/<endpoint>` as `multipart/form-data`.
 *
 * As any sink, it takes frames at the speed of the pipeline's clock; `sync=false` lets a recording run as
 * fast as it can. The streaming thread waits neither for the network nor for the disk, whatever the backend
 * does, unless `drop-policy=block` says so.
 *
 * The same element is also registered as `facepipe-facesink-http`.
 *
 * ## From a crop to a request
 *
 * Up to `batch-size` crops of one camera share a request; a crop waits at most `batch-delay` milliseconds for
 * others, one second by default. Crops of 4 KB cost 11 % more bytes than their pictures in requests of 8, the
 * default, and 19 % in a request for each (`batch-size=1`). `workers` requests are under way at the same time at most, over
 * connections that are kept.
 *
 * Crops wait in memory, up to `max-queue` of them. When that is reached `drop-policy` holds: the `oldest` gives way
 * (the default), or the `newest`, or the stream waits (`block`: for recordings that are replayed as fast as they
 * can be; a live source would lose frames). What is lost is counted as `dropped`.
 *
 * ## When the backend is away
 *
 * Each crop has a `key`, which stays the same however often it is sent, so that the backend stores no face twice.
 *
 * | the backend | what happens | on the bus |
 * |---|---|---|
 * | takes a crop (2xx) | it is done | `facepipe-result` |
 * | refuses one of several pictures (`errors` in its answer) | that one is done, the others are not sent again | `facepipe-rejected`, and a warning for the first of a row |
 * | refuses a request in its own words (400, 413, 415, 422, with `error.code` in JSON) | its crops are sent one by one; those refused again are done | the same |
 * | has no time (408, 423, 425, 429) | crops wait, as long as `Retry-After` says (5 minutes at most), else for the back-off | `facepipe-backend` with state `busy` |
 * | fails (5xx), is not who answers (3xx, other 4xx, a web page or whatever else is not in its form: a proxy, a network's login page, another server), cannot be reached, gives no answer within `timeout`, or breaks off in the middle of it | crops wait likewise | a warning, and `facepipe-backend` with state `away` |
 * | fails with 500 on one crop again and again, five times, at last by itself | that crop is given up | as refused |
 * | doesn't take the token (401, 403) | crops wait likewise; `token-file` is read again before each attempt | a warning, and `facepipe-backend` with state `unauthorized` |
 * | is well again | everything is sent | an info message, and `facepipe-backend` with state `ok` |
 *
 * Only the backend's own words end a crop's life. Crops that a proxy takes for too large together (413) are sent one by
 * one. `camera-id` and `camera-location`, which come with every request, must be as the backend takes them: 1 to 200 and 0
 * to 200 characters, none of them a control character. Others are an error at the start, and a warning while it plays.
 *
 * The back-off grows from 0.5 to 10 seconds, with jitter, and one request at a time asks whether the backend is
 * well again. Each kind of trouble is told once until it is. `retries` limits how often a crop is sent again where
 * there is no spool; then it is given up and told as refused, unless the token was the reason.
 *
 * ## The spool
 *
 * With `spool-dir`, crops go to disk while the backend is away or doesn't take the token, when `max-queue` is half
 * full since the backend cannot keep up, when the end of the stream has waited for `eos-timeout`, and when the element
 * stops. They survive the end of the process, `kill -9` and a loss of power, and are sent afterwards, or by the next
 * run: live crops first, those of the spool in order of capture when no live ones wait. Each keeps its key, time,
 * box, track, camera and location. `retries` says how many failures in a row the crops stay in memory before.
 *
 * The files take `spool-max-bytes` at most; beyond it the oldest give way, counted as `spool-dropped`. A disk that
 * is full or cannot be written is one warning; the crops then stay in memory, and the disk is tried again after 10
 * seconds. Torn files are set aside as `*.damaged`, counted, and are the first to give way; other people's files
 * are left alone. Faces are biometric data: the folder is made with mode 0700 and its files with 0600, and a folder
 * that others can enter is refused; where the mount knows no modes (vfat, exfat, NTFS, CIFS), what helps is an option of
 * mounting it, which the error names. Each element needs a folder of its own, on a local disk.
 *
 * At the end of the stream the element waits for what is queued or on the spool, at most `eos-timeout` seconds, and warns of
 * what was not uploaded, was refused, or gave way until then.
 *
 * ## Token and TLS
 *
 * `token-file`, or `token`, is sent as `Authorization: Bearer …`. The file may be replaced at any time. Neither
 * appears in messages or logs, and `token` cannot be read back.
 *
 * `ca-file` adds certificates in PEM form to those that the system trusts: those of authorities, or the backend's own, also
 * one that signs itself. Such a one is taken as the file has it, byte by byte, until it expires, and for the hosts in its
 * `subjectAltName`, or for any where it has none:
 * |[
 * openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -keyout key.pem -out cert.pem -subj /CN=faces.example -addext subjectAltName=DNS:faces.example
 * ]|
 * `pinned-sha256` names the backend's public key by its SHA-256 in base64 (RFC 7469; as curl has it, with `sha256//` before
 * it). Who proves to have the key is then the backend, whatever its certificate says of names, dates and authorities. With
 * `ca-file`, the certificate is checked as well. Several keys have semicolons between them: name the next one before the
 * backend changes to it.
 * |[
 * openssl x509 -in cert.pem -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | openssl base64
 * ]|
 *
 * ## Proxies
 *
 * The backend is called through the proxy that `http_proxy`, `https_proxy` or `all_proxy` of the environment names
 * (`http://USER:PASSWORD@HOST:PORT`), unless `no_proxy` excepts it, as `facepipe doctor` and all programs call it: https
 * through a tunnel, http by asking the proxy. `localhost` and loopback addresses are never called through one. The same holds
 * for `otlp-endpoint`.
 *
 * ## Traces
 *
 * Each request carries `traceparent` (W3C Trace Context) and the same span's id as `X-Request-Id`, about 100 bytes: the
 * backend's traces and log lines belong to those. With `otlp-endpoint`, the element sends its own spans to an OpenTelemetry collector (OTLP, protobuf over HTTP, to
 * `v1/traces` below it; `ca-file` holds for it too): `crop`, from its cutting until the backend has taken or refused it, in
 * it `queue` or `spool` while it waits, and `upload`, one for each request. A crop's trace follows from its key, so it goes
 * on after an outage or a restart. The request of several crops is in the first one's trace, with links to and from the
 * others'. A crop that gives way or is given up has no span `crop`. Where the collector is away spans are lost, with one warning. Spans have
 * times, counts and statuses, and nothing of a face.
 *
 * ## Capture time
 *
 * Each crop is sent with `captured_at`: the camera's own time, where the source knows it (`rtspsrc
 * add-reference-timestamp-meta=true`), else the time at which the frame was due on the pipeline's clock. For
 * a recording, `capture-start` (RFC 3339, with its time zone) says when it began.
 *
 * The camera's clock is taken while it is within `max-clock-offset` seconds (60) of this machine's. A camera that
 * believes to be in 2000 after a loss of power gives no capture times, then: faces get this machine's, one warning
 * says by how much the clocks differ, and `clock-refused` counts the crops. It holds for the whole stream: many frames do not
 * carry the camera's time (those before its first RTCP report, others where a decoder loses it), and the difference
 * of the clocks gives theirs. A clock that is set while it plays, here or there, is followed after five frames that agree. For a
 * recorder that replays over RTSP with the times of then, `max-clock-offset=-1` takes them as they are; 0 never asks
 * the camera. A machine whose own clock was not set since it was switched on (it is before 2025) believes a camera that is.
 *
 * ## Messages
 *
 * - Element message `facepipe-result`, once for each crop that the backend took: `key` (string), `status`
 *   (uint, of the HTTP answer), `captured-at` (string, RFC 3339), `track-id` (int, 0 where the faces are not
 *   tracked), `left`, `top`, `right`, `bottom` (uint, pixels of the full frame; absent for a picture that is
 *   not from facecrop), `model-version` (string, absent where no model is trained), and `faces` (array of
 *   structures `face`, empty if there is none on the crop or the endpoint doesn't tell): `decision` (string
 *   `known` or `unknown`), `label` (string) and `confidence` (double) of the top prediction, `threshold`
 *   (double), `detection-confidence` (double), `box-left`, `box-top`, `box-right`, `box-bottom` (double,
 *   pixels of the crop); what the backend left out is absent.
 * - Element message `facepipe-rejected`, for each crop that the backend refused for good or that was given up: `key`,
 *   `captured-at`, `track-id`, `left`, `top`, `right`, `bottom` as above, `status` (uint, of the last answer; 0
 *   if there was none), `code` (string, the backend's name for the reason, absent if it gave none) and `message`
 *   (string). The first of a row also comes with a warning.
 * - Element message `facepipe-backend`, when the backend's state changes: `state` (string `ok`, `busy`, `away` or
 *   `unauthorized`) and, unless it is `ok`, `status` (uint, absent if there was no answer), `reason` (string) and
 *   `retry-in` (uint64, milliseconds).
 * - Element message `facepipe-stats`, each `stats-interval` seconds and at the end of the stream, with the fields of
 *   the property `stats` (uint64): `queued`, `sent`, `failed`, `dropped`, `spooled`, `spool-files`, `spool-bytes`,
 *   `spool-dropped`, `spool-damaged`, `spool-errors`, `clock-refused`, `requests`, `retries`, `bytes`, `bytes-received`,
 *   `image-bytes`, and of raw video what `facecrop` counts as left out: `below-min-size`, `below-min-quality`,
 *   `tracks-below-min-size`, `tracks-below-min-quality`, `tracks-below-certainty`, and `min-size`, the limit that counts. `bytes` are counted at the socket; `bytes / image-bytes - 1` is what the transport costs.
 * - Warnings for trouble with the backend or the spool, once each, and an info message when the backend is well again.
 * - A warning, once, where raw video comes that no detector has looked at: after 300 frames, or at the end of the stream.
 *   (Elements between may have said it before.)
 *
 * ## Examples
 *
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facecrop ! facesink-http backend-url=http://127.0.0.1:8080 camera-id=gate-1 camera-location=Lobby
 * ]|
 * The same, cut by the sink:
 * |[
 * gst-launch-1.0 filesrc location=street-1080p.mp4 ! decodebin ! facedetect ! facesink-http backend-url=http://127.0.0.1:8080 camera-id=gate-1 camera-location=Lobby
 * ]|
 * For months on a box: crops that survive outages and restarts, a token, a certification authority of one's own:
 * |[
 * gst-launch-1.0 v4l2src ! decodebin ! facedetect ! facecrop ! facesink-http backend-url=https://faces.example camera-id=gate-1 spool-dir=/var/spool/facepipe/gate-1 token-file=/etc/facepipe/token ca-file=/etc/facepipe/ca.pem
 * ]|
 * Recognise only, and print the answers:
 * |[
 * gst-launch-1.0 -m v4l2src ! decodebin ! facedetect ! facesink-http endpoint=get-results
 * ]|
 */
mod imp;
mod messages;

use gst::{glib, prelude::*};

glib::wrapper! {
    /// The element `facesink-http`.
    pub struct FaceSinkHttp(ObjectSubclass<imp::FaceSinkHttp>)
        @extends gst_base::BaseSink, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    crate::register_both(plugin, "facesink-http", FaceSinkHttp::static_type())
}
