//! The spool: on its own, and in an uploader without a backend.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod common;

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::server::{Answer, Hold, Received, Server, dead_address};
use facepipe_detector::BoundingBox;
use facepipe_test_support::wait_until;
use gstfacepipe::crop::Encoding;
use gstfacepipe::roi::CropArea;
use gstfacepipe::upload::{
    self, BackendStatus, Backoff, Camera, Crop, DrainOutcome, Event, RuntimeSettings, Spool, SpoolConfig,
    SpoolEntry, SpoolError, UploadConfig, UploadError, Uploader,
};
use proptest::{prelude::*, sample::Index};
use time::macros::datetime;
use uuid::Uuid;

/// Limit for what is certain to happen.
const LONG: Duration = Duration::from_secs(60);

/// Returns a crop of 1000 bytes, captured at second `number`.
fn crop(number: u8) -> Crop {
    Crop {
        image: Bytes::from(vec![number; 1000]),
        encoding: if number.is_multiple_of(2) { Encoding::Jpeg } else { Encoding::Webp },
        camera: Arc::new(Camera { id: format!("gate-{}", number % 3), location: "Lobby, \"north\"".into() }),
        captured_at: datetime!(2024-05-06 07:08:09.123456 +02:00) + Duration::from_secs(number.into()),
        track_id: number.is_multiple_of(2).then_some(number.into()),
        run_id: number.is_multiple_of(2).then(|| Uuid::from_u128(number.into())),
        bounding_box: Some(BoundingBox::new(1, 2, 3, number.into())),
        area: Some(CropArea {
            bounding_box: BoundingBox::new(0, 1, 5, 9 + u32::from(number)),
            picture_width: 5,
            picture_height: 8,
        }),
        key: Uuid::now_v7(),
    }
}

fn spooled(number: u8) -> SpoolEntry {
    SpoolEntry { crop: crop(number), attempts: 0, internal_errors: 0, earlier_run: false }
}

/// Returns a folder that doesn't exist yet.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("var/spool");
    (parent, folder)
}

fn open(folder: &Path, max_bytes: u64) -> Spool {
    Spool::open(&SpoolConfig { folder: folder.into(), max_bytes }).unwrap()
}

/// Returns what is sent with an image.
fn metadata(crop: &Crop) -> String {
    format!("{:?}", Crop { image: Bytes::new(), ..crop.clone() })
}

fn crop_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "crop")).collect();
    files.sort();
    files
}

fn numbers(claimed: &[(upload::SpoolId, SpoolEntry)]) -> Vec<u8> {
    claimed.iter().map(|(_, spooled)| spooled.crop.image[0]).collect()
}

#[test]
fn stored_crops_survive_a_restart_in_capture_order_with_their_metadata() {
    let (_parent, folder) = folder();
    let stored: Vec<SpoolEntry> = [3, 1, 2, 5, 4].map(spooled).into();
    let mut spool = open(&folder, 1 << 20);
    spool.store(&stored).unwrap();
    drop(spool);

    let mut spool = open(&folder, 1 << 20);
    assert_eq!(spool.counts().files, 5);
    let first = spool.claim(2);
    assert_eq!(numbers(&first), [1, 2]);
    let others = spool.claim(10);
    assert_eq!(numbers(&others), [3, 4, 5], "what is claimed is not given out again");
    for (_, SpoolEntry { crop, .. }) in first.iter().chain(&others) {
        let original = &stored.iter().find(|s| s.crop.key == crop.key).unwrap().crop;
        assert_eq!(metadata(crop), metadata(original));
        assert_eq!(crop.image, original.image);
    }
    spool.delete(&first.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    assert_eq!((spool.counts().files, spool.counts().unclaimed), (3, 0));
    drop(spool);
    assert_eq!(numbers(&open(&folder, 1 << 20).claim(10)), [3, 4, 5], "what was not deleted stays");
}

#[test]
fn files_of_an_earlier_version_are_read() {
    let (_parent, folder) = folder();
    drop(open(&folder, 1 << 20));
    // As versions wrote it that stored neither the crop's area nor the tracker's run.
    let key = Uuid::now_v7();
    let metadata = format!(
        r#"{{"key":"{key}","captured_at":"2024-05-06T07:08:09Z","camera_id":"gate-1","location":"Lobby","media_type":"image/jpeg","track_id":4,"bounding_box":[1,2,3,4],"bytes":5}}"#
    );
    let content = format!("{metadata}image");
    let checksum = crc32fast::hash(content.as_bytes());
    let file = format!("facepipe-crop 1 {checksum:08x} {}\n{content}", metadata.len());
    fs::write(folder.join(format!("001714979289000000-{}.crop", key.simple())), file).unwrap();
    let found = open(&folder, 1 << 20).claim(1);
    let crop = &found[0].1.crop;
    assert_eq!((crop.key, crop.track_id, crop.run_id, crop.area), (key, Some(4), None, None));
    assert_eq!(crop.bounding_box, Some(BoundingBox::new(1, 2, 3, 4)));
    assert_eq!((crop.camera.id.as_str(), &crop.image[..]), ("gate-1", &b"image"[..]));
}

#[test]
fn spool_files_are_private() {
    let (_parent, folder) = folder();
    let mut spool = open(&folder, 1 << 20);
    spool.store(&[spooled(1)]).unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&folder).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
    drop(spool);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
    let error = Spool::open(&SpoolConfig { folder: folder.clone(), max_bytes: 1 << 20 }).unwrap_err();
    assert!(matches!(error, SpoolError::AccessibleToOthers { mode: 0o750, .. }), "{error}");
    assert!(error.to_string().contains(folder.to_str().unwrap()) && error.to_string().contains("chmod 700"));
    assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o750, "another's folder is left as it is");
}

#[test]
fn a_spool_folder_is_locked_by_one_user() {
    let (_parent, folder) = folder();
    let config = SpoolConfig { folder: folder.clone(), max_bytes: 1 << 20 };
    let spool = Spool::open(&config).unwrap();
    let error = Spool::open(&config).unwrap_err();
    assert!(matches!(error, SpoolError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(folder.to_str().unwrap()));
    drop(spool);
    Spool::open(&config).unwrap();
}

#[test]
fn the_oldest_crops_are_dropped_when_the_spool_is_full() {
    let (_parent, folder) = folder();
    let mut spool = open(&folder, 6000);
    spool.store(&[2, 1, 3].map(spooled)).unwrap();
    let one = spool.counts().bytes / 3;
    assert!((1000..1500).contains(&one), "{one} bytes for a crop of 1000");
    spool.store(&[4, 5, 6, 7].map(spooled)).unwrap();
    let counts = spool.counts();
    assert!(counts.bytes <= 6000, "{counts:?}");
    assert_eq!(counts.files + counts.dropped, 7);
    let on_disk: u64 = crop_files(&folder).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert_eq!(on_disk, counts.bytes);
    let left = numbers(&spool.claim(10));
    assert_eq!(left, (1..=7).skip(counts.dropped as usize).collect::<Vec<u8>>());

    // Claimed crops are never dropped; a new one that does not fit is counted.
    spool.store(&[spooled(8)]).unwrap();
    assert_eq!((spool.counts().files, spool.counts().dropped), (counts.files, counts.dropped + 1));
    drop(spool);
    let spool = open(&folder, 2 * one + 100);
    assert_eq!(spool.counts().files, 2, "a smaller limit holds for what is there");
}

#[test]
fn damaged_files_are_quarantined_and_foreign_files_left_alone() {
    let (_parent, folder) = folder();
    open(&folder, 1 << 20).store(&(0..8).map(spooled).collect::<Vec<_>>()).unwrap();
    let files = crop_files(&folder);
    let content = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &content[..content.len() - 1]).unwrap();
    fs::write(&files[1], b"").unwrap();
    let mut flipped = fs::read(&files[2]).unwrap();
    flipped[60] ^= 1;
    fs::write(&files[2], flipped).unwrap();
    fs::write(&files[3], vec![0; 1500]).unwrap();
    fs::write(&files[4], b"facepipe-crop 1 00000000 99999999999\n").unwrap();
    // A crop under another crop's name.
    fs::copy(&files[6], &files[5]).unwrap();
    let begun = folder.join(format!("{}.tmp", files[7].file_name().unwrap().to_str().unwrap()));
    fs::write(&begun, b"half").unwrap();
    let foreign = ["notes.txt", "1-2.crop", "photo.crop", "x.damaged"].map(|name| folder.join(name));
    for file in &foreign {
        fs::write(file, b"mine").unwrap();
    }
    fs::create_dir(folder.join("folder.crop")).unwrap();

    let mut spool = open(&folder, 1 << 20);
    assert_eq!(numbers(&spool.claim(100)), [6, 7]);
    assert_eq!((spool.counts().damaged, spool.counts().files), (6, 2));
    assert!(!begun.exists());
    assert!(foreign.iter().all(|file| fs::read(file).unwrap() == b"mine"));
    let aside = || {
        let entries = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        entries.filter(|name| name.ends_with(".crop.damaged")).count()
    };
    assert_eq!(aside(), 6);
    drop(spool);

    // They count, and are evicted first.
    let mut spool = open(&folder, 3000);
    assert_eq!((spool.counts().files, spool.counts().damaged), (2, 0));
    spool.store(&[spooled(9)]).unwrap();
    assert_eq!(aside(), 0);
    assert!(spool.counts().bytes <= 3000);
}

#[test]
fn a_deleted_file_is_no_error() {
    let (_parent, folder) = folder();
    let mut spool = open(&folder, 1 << 20);
    spool.store(&[1, 2, 3].map(spooled)).unwrap();
    fs::remove_file(&crop_files(&folder)[1]).unwrap();
    let claimed = spool.claim(10);
    assert_eq!(numbers(&claimed), [1, 3]);
    spool.delete(&claimed.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    assert_eq!((spool.counts().files, spool.counts().bytes), (0, 0));
}

/// One step of a history of a spool.
#[derive(Debug, Clone)]
enum Step {
    Store(Vec<u8>),
    Claim(usize),
    /// Deletes a claimed crop.
    Delete(Index),
    /// The process dies: what is on disk stays.
    Crash,
    /// It dies while it writes a crop; this much is on disk.
    CrashWhileWriting(u8, Index),
    /// A disk error: a crop's file loses its end, or a byte changes.
    Truncate(Index, Index),
    Corrupt(Index, Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let step = prop_oneof![
        4 => prop::collection::vec(0..20_u8, 1..5).prop_map(Step::Store),
        3 => (0..4_usize).prop_map(Step::Claim),
        3 => index().prop_map(Step::Delete),
        2 => Just(Step::Crash),
        1 => (0..20_u8, index()).prop_map(|(number, length)| Step::CrashWhileWriting(number, length)),
        1 => (index(), index()).prop_map(|(file, length)| Step::Truncate(file, length)),
        2 => (index(), index()).prop_map(|(file, byte)| Step::Corrupt(file, byte)),
    ];
    prop::collection::vec(step, 1..16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each of 20 crops has one key throughout. What the spool has accepted comes back after any crash, unchanged, once,
    /// and under its key, until it is deleted; a damaged file is counted and never sent.
    #[test]
    fn crashes_lose_and_duplicate_no_stored_crop(steps in steps()) {
        let (_parent, folder) = folder();
        let crops: Vec<Crop> = (0..20).map(crop).collect();
        let entry = |number: u8| {
            let crop = crops[usize::from(number)].clone();
            SpoolEntry { crop, attempts: 0, internal_errors: 0, earlier_run: false }
        };
        let mut spool = Some(open(&folder, 1 << 20));
        // Crops on disk, in order of capture; those of them that are damaged; those that are claimed.
        let mut stored = BTreeSet::new();
        let mut damaged = BTreeSet::new();
        let mut claimed: Vec<(upload::SpoolId, u8)> = Vec::new();
        let mut found_damaged = 0;
        // At last everything is read that is left.
        for step in steps.into_iter().chain([Step::Crash, Step::Claim(100)]) {
            match step {
                Step::Store(numbers) => {
                    let entries: Vec<SpoolEntry> = numbers.iter().map(|&number| entry(number)).collect();
                    spool.as_mut().unwrap().store(&entries).unwrap();
                    stored.extend(numbers);
                }
                Step::Claim(count) => {
                    let spool = spool.as_mut().unwrap();
                    let found = spool.claim(count);
                    let mut expected = Vec::new();
                    let taken: Vec<u8> = claimed.iter().map(|(_, number)| *number).collect();
                    for number in stored.clone() {
                        if expected.len() == count {
                            break;
                        } else if taken.contains(&number) {
                            continue;
                        } else if damaged.remove(&number) {
                            stored.remove(&number);
                            found_damaged += 1;
                        } else {
                            expected.push(number);
                        }
                    }
                    prop_assert_eq!(numbers(&found), expected);
                    for (id, SpoolEntry { crop, .. }) in found {
                        let number = crop.image[0];
                        let original = &crops[usize::from(number)];
                        prop_assert_eq!(metadata(&crop), metadata(original));
                        prop_assert_eq!(&crop.image, &original.image);
                        claimed.push((id, number));
                    }
                    prop_assert_eq!(spool.counts().damaged, found_damaged);
                }
                Step::Delete(index) => {
                    if !claimed.is_empty() {
                        let (id, number) = claimed.remove(index.index(claimed.len()));
                        spool.as_mut().unwrap().delete(&[id]);
                        stored.remove(&number);
                        // Deleted before the damage was noticed.
                        damaged.remove(&number);
                    }
                }
                Step::Crash => {
                    // First the old one, whose lock the new one needs.
                    drop(spool.take());
                    spool = Some(open(&folder, 1 << 20));
                    claimed.clear();
                    found_damaged = 0;
                }
                Step::CrashWhileWriting(number, length) => {
                    drop(spool.take());
                    let other = tempfile::tempdir().unwrap();
                    let other = other.path().join("spool");
                    open(&other, 1 << 20).store(&[entry(number)]).unwrap();
                    let whole = &crop_files(&other)[0];
                    let mut name = whole.file_name().unwrap().to_owned();
                    name.push(".tmp");
                    let content = fs::read(whole).unwrap();
                    fs::write(folder.join(&name), &content[..length.index(content.len())]).unwrap();
                    spool = Some(open(&folder, 1 << 20));
                    prop_assert!(!folder.join(name).exists());
                    claimed.clear();
                    found_damaged = 0;
                }
                Step::Truncate(file, at) | Step::Corrupt(file, at) => {
                    let files = crop_files(&folder);
                    if files.is_empty() {
                        continue;
                    }
                    let file = &files[file.index(files.len())];
                    let mut content = fs::read(file).unwrap();
                    if content.is_empty() {
                        continue;
                    }
                    let at = at.index(content.len());
                    if matches!(step, Step::Truncate(..)) {
                        content.truncate(at);
                    } else {
                        content[at] = content[at].wrapping_add(1);
                    }
                    fs::write(file, content).unwrap();
                    let name = file.to_str().unwrap();
                    let number = crops.iter().position(|crop| name.contains(&crop.key.simple().to_string()));
                    damaged.insert(u8::try_from(number.unwrap()).unwrap());
                }
            }
            let left = crop_files(&folder).len();
            prop_assert_eq!((left, spool.as_ref().unwrap().counts().files), (stored.len(), stored.len() as u64));
        }
    }
}

type Events = Arc<Mutex<Vec<Event>>>;

fn config(url: String, folder: &Path) -> UploadConfig {
    UploadConfig {
        backend_url: url,
        backoff: Backoff { initial: Duration::from_millis(20), maximum: Duration::from_millis(100) },
        spool: Some(SpoolConfig { folder: folder.into(), max_bytes: 1 << 20 }),
        settings: RuntimeSettings { batch_delay: Duration::ZERO, ..RuntimeSettings::default() },
        ..UploadConfig::default()
    }
}

fn start(config: UploadConfig) -> (Uploader, Events) {
    let events = Events::default();
    let observed = Arc::clone(&events);
    let uploader =
        Uploader::start(config, Arc::new(move |event| observed.lock().unwrap().push(event))).unwrap();
    (uploader, events)
}

/// Returns the numbers of the images, in order of arrival.
fn arrived(requests: &[Received]) -> Vec<u8> {
    requests.iter().flat_map(Received::images).map(|image| image[0]).collect()
}

/// Returns a crop of one camera, so that batches are full.
fn one_camera(number: u8) -> Crop {
    Crop { camera: Arc::default(), track_id: None, run_id: None, ..crop(number) }
}

#[test]
fn during_an_outage_crops_are_spooled_and_then_sent_in_capture_order() {
    let (_parent, folder) = folder();
    let address = dead_address();
    let (uploader, events) = start(config(format!("http://{address}"), &folder));
    let order = [5, 3, 8, 1, 9, 2, 7, 4, 6, 0];
    for number in order {
        uploader.push(one_camera(number));
    }
    wait_until("all crops on disk", || uploader.stats().spool_files == 10);
    assert_eq!(crop_files(&folder).len(), 10);
    let stats = uploader.stats();
    assert_eq!((stats.queued, stats.spooled, stats.dropped), (0, 10, 0));

    let server = Server::start_at(address, |_| Answer::status(201));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let came = arrived(&server.received());
    assert_eq!(came.iter().collect::<HashSet<_>>().len(), 10, "{came:?}");
    assert_eq!(came.len(), 10, "each once: {came:?}");
    let stats = uploader.stats();
    assert_eq!((stats.sent, stats.spool_files, stats.spool_bytes), (10, 0, 0));
    assert!(crop_files(&folder).is_empty());
    // The first two may have been read for a probe before the others were there.
    let late: Vec<u8> = came.iter().copied().filter(|number| !order[..2].contains(number)).collect();
    assert!(late.is_sorted(), "{came:?}");
    let recovered =
        events.lock().unwrap().iter().filter(|e| matches!(e, Event::BackendRecovered { .. })).count();
    assert_eq!(recovered, 1);
}

#[test]
fn crops_unsent_at_stop_are_sent_by_the_next_run_with_their_metadata() {
    let (_parent, folder) = folder();
    // If stopping waited for the answer, this would never end.
    let hanging = Server::answering([Answer::status(201).held(&Hold::default())]);
    let mut patient = config(hanging.url(), &folder);
    patient.settings.timeout = Duration::ZERO;
    let (uploader, _) = start(patient);
    let crops: Vec<Crop> = (0..9).map(crop).collect();
    for crop in &crops {
        uploader.push(crop.clone());
    }
    hanging.wait_for(1);
    let stats = uploader.stop();
    assert_eq!((stats.dropped, stats.queued, stats.spool_files), (0, 0, 9), "{stats:?}");

    let server = Server::answering([Answer::status(201)]);
    let (uploader, _) = start(config(server.url(), &folder));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let received = server.received();
    assert_eq!(arrived(&received), (0..9).collect::<Vec<u8>>(), "in order of capture, each once");
    for request in &received {
        for (index, image) in request.images().iter().enumerate() {
            let original = &crops[usize::from(image[0])];
            assert_eq!(request.field("camera_id"), original.camera.id);
            assert_eq!(request.field("location"), original.camera.location);
            assert_eq!(request.all("key")[index], upload::encode_uuid(original.key));
            assert_eq!(request.all("captured_at")[index], upload::format_captured_at(original.captured_at));
            assert_eq!(request.all("box")[index], format!("1,2,3,{}", image[0]));
            // Of the run that captured it, not of the one that sends it.
            let run_id = request.all("run_id").first().cloned();
            assert_eq!(run_id, original.run_id.map(upload::encode_uuid));
        }
    }
    assert_eq!(uploader.stats().sent, 9);
}

#[test]
fn live_crops_are_sent_before_spooled_ones() {
    let (_parent, folder) = folder();
    let stored: Vec<SpoolEntry> = (0..60)
        .map(|n| SpoolEntry { crop: one_camera(n), attempts: 0, internal_errors: 0, earlier_run: false })
        .collect();
    open(&folder, 1 << 20).store(&stored).unwrap();
    let (answer, hold) = (Answer::status(201), Hold::default());
    let server = Server::answering([answer.clone(), answer.clone(), answer.clone().held(&hold), answer]);
    let mut config = config(server.url(), &folder);
    config.settings.batch_size = 2;
    let (uploader, _) = start(config);
    server.wait_for(3);
    uploader.push(one_camera(200));
    // The second worker is reserved for live crops.
    server.wait_for(4);
    hold.release();
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let came = arrived(&server.received());
    let live = came.iter().position(|&number| number == 200).unwrap();
    assert!(live <= 3 * 2 + 4, "it came at place {live}");
    let spooled: Vec<u8> = came.iter().copied().filter(|&number| number != 200).collect();
    assert_eq!(spooled, (0..60).collect::<Vec<u8>>());
}

#[test]
fn a_slow_backend_fills_the_spool_and_loses_nothing() {
    let (_parent, folder) = folder();
    let server = Server::answering([Answer::status(201).after(Duration::from_millis(20))]);
    let mut config = config(server.url(), &folder);
    (config.settings.max_queue, config.settings.batch_size) = (20, 4);
    let (uploader, _) = start(config);
    for number in 0..200 {
        // Faster than the backend, but not faster than the disk.
        wait_until("room in memory", || uploader.stats().queued < 20);
        uploader.push(one_camera(number));
    }
    let stats = uploader.stats();
    assert!(stats.spooled > 0, "{stats:?}");
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let stats = uploader.stats();
    assert_eq!((stats.sent, stats.dropped, stats.spool_dropped), (200, 0, 0), "{stats:?}");
    let mut came = arrived(&server.received());
    came.sort_unstable();
    assert_eq!(came, (0..200).collect::<Vec<u8>>());
}

#[test]
fn drain_spools_what_it_cannot_send() {
    let (_parent, folder) = folder();
    let server = Server::answering([Answer::status(429).header("Retry-After", "60")]);
    let (uploader, _) = start(config(server.url(), &folder));
    for number in 0..5 {
        uploader.push(one_camera(number));
    }
    server.wait_for(1);
    let drained = uploader.drain(Duration::from_secs(1));
    assert_eq!(drained, DrainOutcome::TimedOut { left: 0, spooled: 5 });
    assert_eq!(crop_files(&folder).len(), 5, "before the uploader is stopped");
}

#[test]
fn only_a_drain_that_has_timed_out_spools_what_is_left() {
    let (_parent, folder) = folder();
    let server = Server::answering([Answer::status(429).header("Retry-After", "60")]);
    let (uploader, _) = start(config(server.url(), &folder));
    for number in 0..5 {
        uploader.push(one_camera(number));
    }
    server.wait_for(1);
    uploader.interrupt();
    for _ in 0..20 {
        assert_eq!(uploader.drain(LONG), DrainOutcome::Interrupted);
    }
    uploader.resume();
    let stats = uploader.stats();
    assert_eq!((stats.queued, stats.spooled), (5, 0), "{stats:?}");
    assert!(matches!(uploader.drain(Duration::from_millis(1)), DrainOutcome::TimedOut { .. }));
    wait_until("all crops on disk", || {
        // An interval of a millisecond may be too short for the disk.
        uploader.drain(Duration::from_millis(100));
        uploader.stats().spooled == 5
    });
}

#[test]
fn crops_are_spooled_only_after_retries_failures() {
    let (_parent, folder) = folder();
    let (answer, hold) = (Answer::status(503), Hold::default());
    let server = Server::answering([answer.clone(), answer.clone(), answer.held(&hold)]);
    let mut config = config(server.url(), &folder);
    config.settings.retries = Some(2);
    let (uploader, _) = start(config);
    uploader.push(one_camera(1));
    server.wait_for(3);
    assert_eq!(uploader.stats().spooled, 0, "after two failures");
    hold.release();
    wait_until("the crop on disk", || uploader.stats().spool_files == 1);
    assert!(server.received().len() >= 3);
    assert_eq!(uploader.stats().failed, 0, "with a spool nothing is given up");
}

#[test]
fn a_rejected_token_fills_the_spool() {
    let (_parent, folder) = folder();
    let server = Server::answering([Answer::status(401)]);
    let (uploader, events) = start(config(server.url(), &folder));
    for number in 0..5 {
        uploader.push(one_camera(number));
    }
    wait_until("all crops on disk", || uploader.stats().spool_files == 5);
    let events = events.lock().unwrap();
    let reported = |e: &Event| {
        matches!(
            e,
            Event::BackendUnhealthy { status: BackendStatus::Unauthorized, http_status: Some(401), .. }
        )
    };
    assert!(events.iter().any(reported), "{events:?}");
}

#[test]
fn a_spooled_crop_that_causes_500_does_not_block_others() {
    let (_parent, folder) = folder();
    let stored: Vec<SpoolEntry> = (0..20)
        .map(|n| SpoolEntry { crop: one_camera(n), attempts: 0, internal_errors: 0, earlier_run: false })
        .collect();
    open(&folder, 1 << 20).store(&stored).unwrap();
    let server = Server::start(|request: &Received| {
        let poisonous = request.images().iter().any(|image| image[0] == 3);
        Answer::status(if poisonous { 500 } else { 201 })
    });
    let (uploader, _) = start(config(server.url(), &folder));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    let stats = uploader.stats();
    assert_eq!((stats.sent, stats.failed, stats.spool_files), (19, 1, 0), "{stats:?}");
    assert!(crop_files(&folder).is_empty());
}

#[test]
fn a_disk_error_is_reported_once_and_crops_stay_in_memory() {
    let (_parent, folder) = folder();
    let address = dead_address();
    let (uploader, events) = start(config(format!("http://{address}"), &folder));
    // The folder's place is taken by a file: nothing can be written, not even by root.
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, b"").unwrap();
    for number in 0..50 {
        uploader.push(one_camera(number));
    }
    wait_until("the error", || {
        events.lock().unwrap().iter().any(|e| matches!(e, Event::SpoolProblem { .. }))
    });
    let stats = uploader.stats();
    assert!(stats.spool_errors > 0, "{stats:?}");
    assert_eq!((stats.queued, stats.dropped, stats.spool_files), (50, 0, 0), "{stats:?}");
    let reported: Vec<String> = (events.lock().unwrap().iter())
        .filter_map(|e| if let Event::SpoolProblem { reason } = e { Some(reason.clone()) } else { None })
        .collect();
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(reported[0].contains("cannot be written"), "{reported:?}");

    let server = Server::start_at(address, |_| Answer::status(201));
    assert_eq!(uploader.drain(LONG), DrainOutcome::Empty);
    assert_eq!(uploader.stats().sent, 50);
    assert_eq!(arrived(&server.received()).len(), 50);
}

#[test]
fn an_uploader_with_a_locked_spool_does_not_start() {
    let (_parent, folder) = folder();
    let (_first, _) = start(config(format!("http://{}", dead_address()), &folder));
    let second = Uploader::start(config("http://127.0.0.1:1".into(), &folder), Arc::new(|_| ()));
    let error = second.err().unwrap();
    assert!(matches!(error, UploadError::Spool(SpoolError::InUse { .. })), "{error}");
}

#[test]
fn every_crop_is_accounted_for() {
    let (_parent, folder) = folder();
    let mut answers = 0_u32;
    let server = Server::start(move |_| {
        answers += 1;
        Answer::status(if answers.is_multiple_of(3) { 201 } else { 503 })
    });
    let mut config = config(server.url(), &folder);
    config.spool = Some(SpoolConfig { folder: folder.clone(), max_bytes: 20_000 });
    let (uploader, _) = start(config);
    for number in 0..200 {
        uploader.push(one_camera(number));
        // So that some are sent meanwhile.
        server.wait_for(usize::from(number) / 20);
    }
    let stats = uploader.stop();
    let known = stats.sent + stats.failed + stats.dropped + stats.spool_dropped + stats.spool_files;
    assert_eq!((known, stats.queued), (200, 0), "{stats:?}");
    assert!(stats.spool_bytes <= 20_000 && stats.spool_files > 0, "{stats:?}");
    assert_eq!(crop_files(&folder).len() as u64, stats.spool_files);
}
