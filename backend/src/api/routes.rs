//! The routes: one table of paths, roles, access, methods and handlers, with what the API's document says of each call
//! beyond the types of its handler. Routing, 405 and its `Allow`, roles, tokens and the document follow from it.

use actix_web::web as actix;
use paperclip::actix::web;

use super::{
    cameras, cohort, database, dataset, debug, detections, guide, health, images, jobs, method_not_allowed,
    model,
    openapi::{self, Call, DATABASE, DATASET, DEBUG, Link, MODEL, RECOGNITION, SERVER, UNKNOWNS, call},
    people, proposals, recognition, root, sightings, unknowns, verify,
};
use crate::{
    config::ServerRole,
    error::examples::{
        CAMERA, CHANGE, DETAILS, DRAINING, DUPLICATE, EXISTS, FACE_ID, FORM, FULL, IMAGE, IMAGE_PARTS, JOB,
        JOB_END, JSON, LIMIT, MODEL_READ, MODEL_REMOVAL, MODELS, NEVER_SEEN, NO_DETECTION, NO_IMAGE, NO_JOB,
        NO_PICTURE, NO_UNKNOWN, NOT_IN_MODEL, ONE_FACE, PAGE, PATH, PERSON, PERSON_IMAGE, QUALITY, QUERY,
        QUEUE, ROWS, SELECTED, SELECTION, SEND, TWO_IMAGES, UNKNOWN_FACES, UNKNOWN_IDS,
    },
};

/// A path and its methods.
pub struct Route {
    /// The pattern of the path, as actix has it.
    pub path: &'static str,
    /// The servers that serve it; [`ServerRole::All`] for every server.
    pub role: ServerRole,
    /// Who may call it.
    pub access: Access,
    /// Its methods in lower case; a page has no call.
    pub methods: &'static [(&'static str, Option<Call>)],
}

/// Who may call a route of a server that has tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, without a token: probes, and the document with its pages.
    Open,
    /// A camera's token may POST; an admin's may use all methods.
    Camera,
    /// An admin's token.
    Admin,
}

macro_rules! routes {
    (
        calls { $($path:literal $role:ident $access:ident {
            $($method:ident $handler:path => $call:expr;)+
        })+ }
        pages { $($page:literal => $page_handler:path;)+ }
    ) => {
        /// All routes.
        pub const ROUTES: &[Route] = &[
            $(Route {
                path: $path,
                role: ServerRole::$role,
                access: Access::$access,
                methods: &[$((stringify!($method), Some($call))),+],
            },)+
            $(Route { path: $page, role: ServerRole::All, access: Access::Open, methods: &[("get", None)] },)+
        ];

        /// Registers the calls, with their documentation.
        pub fn register_calls(config: &mut web::ServiceConfig) {
            config$(.service(
                web::resource($path)
                    $(.route(web::$method().to($handler)))+
                    .default_service(web::to(|request| method_not_allowed(request, &[$(stringify!($method)),+]))),
            ))+;
        }

        /// Registers the pages for browsers, which the document leaves out.
        pub fn register_pages(config: &mut actix::ServiceConfig) {
            config$(.service(
                actix::resource($page)
                    .route(actix::get().to($page_handler))
                    .default_service(actix::to(|request| method_not_allowed(request, &["get"]))),
            ))+;
        }
    };
}

// The first route that matches is taken, so literal segments stand before parameters.
routes! {
    calls {
        "/" All Open {
            get root::describe_service => Call {
                headers: &[(200, "Vary"), (307, "Location"), (307, "Vary")],
                ..call(SERVER, &[])
            };
        }

        "/dataset" Manage Admin {
            get dataset::list => call(DATASET, &[ROWS]);
        }
        // An empty id is an invalid id, not an unknown path.
        "/dataset/{id:[^/]*}" Manage Admin {
            get dataset::images => call(DATASET, &[FACE_ID, PERSON, ROWS]);
            post dataset::add => call(DATASET, &[FACE_ID, EXISTS, CHANGE, ROWS]);
            patch dataset::rename => call(DATASET, &[FACE_ID, JSON, PERSON, EXISTS, CHANGE, ROWS]);
            delete dataset::erase => Call {
                headers: &[(204, "Cache-Control")],
                ..call(DATASET, &[FACE_ID, PERSON, CHANGE, ROWS])
            };
        }
        "/dataset/{id:[^/]*}/image" Manage Admin {
            post dataset::add_image => Call {
                links: &[
                    Link { status: 201, to: ("GET", "/dataset/{id}/image/{image_id}"), parameters: ENROLLED },
                    Link { status: 201, to: ("DELETE", "/dataset/{id}/image/{image_id}"), parameters: ENROLLED },
                    Link {
                        status: 201,
                        to: ("GET", "/images/{image_id}"),
                        parameters: &[("image_id", "$response.body#/image_id")],
                    },
                ],
                ..call(DATASET, &[FACE_ID, PERSON, FORM, IMAGE, DUPLICATE, ONE_FACE, QUALITY, QUEUE, CHANGE, ROWS])
            };
        }
        "/dataset/{id:[^/]*}/image/{image_id}" Manage Admin {
            get dataset::image => Call {
                headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
                ..call(DATASET, &[FACE_ID, PERSON_IMAGE, NO_PICTURE, ROWS])
            };
            delete dataset::erase_image => call(DATASET, &[FACE_ID, PERSON_IMAGE, CHANGE, ROWS]);
        }
        "/people" Manage Admin {
            get people::list => call(DATASET, &[ROWS]);
            post people::add => call(DATASET, &[FACE_ID, JSON, EXISTS, CHANGE, ROWS]);
        }
        "/people/search" Manage Admin {
            post people::search => call(DATASET, &[FACE_ID, JSON, PERSON, ROWS]);
        }
        "/people/{person_id}" Manage Admin {
            get people::images => call(DATASET, &[PATH, PERSON, ROWS]);
            patch people::rename => call(DATASET, &[FACE_ID, JSON, PERSON, EXISTS, CHANGE, ROWS]);
            delete people::erase => Call {
                headers: &[(204, "Cache-Control")],
                ..call(DATASET, &[PATH, PERSON, CHANGE, ROWS])
            };
        }
        "/people/{person_id}/images" Manage Admin {
            post people::add_image =>
                call(DATASET, &[PATH, PERSON, FORM, IMAGE, DUPLICATE, ONE_FACE, QUALITY, QUEUE, CHANGE, ROWS]);
        }
        "/people/{person_id}/track" Manage Admin {
            get people::track => call(DATABASE, &[PAGE, PATH, PERSON, ROWS]);
        }
        "/people/{person_id}/search-past" Manage Admin {
            post people::search_past => Call {
                tag: UNKNOWNS,
                errors: &[PATH, PERSON, NOT_IN_MODEL, QUERY, JOB, FULL, ROWS],
                ..job_call()
            };
        }
        "/people/{person_id}/last-known-location" Manage Admin {
            get people::last_known_location => call(DATABASE, &[PATH, PERSON, NEVER_SEEN, ROWS]);
        }
        "/images/{image_id}" Manage Admin {
            get images::get => call(DATASET, &[PATH, NO_IMAGE, ROWS]);
            delete images::erase => call(DATASET, &[PATH, NO_IMAGE, CHANGE, ROWS]);
        }
        "/images/{image_id}/content" Manage Admin {
            get images::content => Call {
                headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
                ..call(DATASET, &[PATH, NO_IMAGE, NO_PICTURE, ROWS])
            };
        }

        "/cohort" Manage Admin {
            get cohort::show => call(MODEL, &[ROWS]);
            put cohort::add => Call {
                headers: &[(200, "Server-Timing")],
                ..call(MODEL, &[FORM, IMAGE_PARTS, QUEUE, FULL, ROWS])
            };
            delete cohort::erase => call(MODEL, &[SELECTION, FULL, ROWS]);
        }

        "/model" Manage Admin {
            get model::list => call(MODEL, &[ROWS]);
        }
        "/model/optimized-train" Manage Admin {
            post model::optimized_train => job_call();
        }
        "/model/train" Manage Admin {
            post model::train => job_call();
        }
        "/model/generate-emb" Manage Admin {
            post model::generate_emb => job_call();
        }
        "/model/{version}" Manage Admin {
            get model::get => call(MODEL, &[PATH, MODEL_READ, ROWS]);
            delete model::remove => call(MODEL, &[PATH, MODEL_REMOVAL, FULL, ROWS]);
        }
        "/model/{version}/activate" Manage Admin {
            post model::activate => call(MODEL, &[PATH, MODELS, FULL, ROWS]);
        }
        "/jobs" Manage Admin {
            get jobs::list => call(MODEL, &[LIMIT, ROWS]);
        }
        "/jobs/{job_id}" Manage Admin {
            get jobs::get => call(MODEL, &[PATH, NO_JOB, ROWS]);
            delete jobs::cancel => call(MODEL, &[PATH, JOB_END, FULL, ROWS]);
        }

        "/face-recognition/get-results" Recognize Camera {
            get recognition::get_results => Call {
                headers: &[(200, "Server-Timing")],
                ..call(RECOGNITION, &[FORM, IMAGE, DETAILS, QUEUE, ROWS])
            };
            post recognition::get_results => Call {
                headers: &[(200, "Server-Timing")],
                ..call(RECOGNITION, &[FORM, IMAGE, DETAILS, QUEUE, ROWS])
            };
        }
        "/face-recognition/store-results" Recognize Camera {
            post recognition::store_results => Call {
                headers: &[(201, "Server-Timing")],
                required: &["camera_id", "location"],
                ..call(RECOGNITION, &[FORM, IMAGE, CAMERA, DETAILS, QUEUE, FULL, ROWS])
            };
        }
        "/face-recognition/send-results" Recognize Camera {
            post recognition::send_results => Call {
                headers: &[(202, "Server-Timing")],
                required: &["camera_id", "location"],
                ..call(RECOGNITION, &[FORM, IMAGE, SEND, DETAILS, QUEUE, FULL, ROWS])
            };
        }
        "/face-recognition/verify" Recognize Camera {
            post verify::verify => Call {
                headers: &[(200, "Server-Timing")],
                ..call(RECOGNITION, &[FORM, TWO_IMAGES, ONE_FACE, QUEUE])
            };
        }
        "/face-recognition/dry-run" Recognize Camera {
            post recognition::dry_run => call(RECOGNITION, &[FORM, IMAGE_PARTS, DETAILS]);
        }

        "/database/people" Manage Admin {
            get database::people => call(DATABASE, &[ROWS]);
        }
        "/database/detections" Manage Admin {
            get detections::list => Call {
                headers: &[(200, "Vary"), (200, "X-Next-Cursor")],
                also: &[(200, "text/csv", CSV_EXAMPLE)],
                ..call(DATABASE, &[PAGE, FACE_ID, PERSON, ROWS])
            };
        }
        "/database/sightings" Manage Admin {
            get sightings::list => Call {
                headers: &[(200, "Vary"), (200, "X-Next-Cursor")],
                also: &[(200, "text/csv", SIGHTINGS_CSV_EXAMPLE)],
                ..call(DATABASE, &[PAGE, FACE_ID, PERSON, ROWS])
            };
        }
        "/database/{id:[^/]*}/track" Manage Admin {
            get detections::track => call(DATABASE, &[PAGE, FACE_ID, PERSON, ROWS]);
        }
        "/database/{id:[^/]*}/last-known-location" Manage Admin {
            get database::last_known_location => call(DATABASE, &[FACE_ID, PERSON, NEVER_SEEN, ROWS]);
        }
        // After the paths of a person: a person may be called “detections”.
        "/database/detections/{detection_id:[^/]*}" Manage Admin {
            get detections::get => call(DATABASE, &[PATH, NO_DETECTION, ROWS]);
            delete detections::erase => call(DATABASE, &[PATH, NO_DETECTION, FULL, ROWS]);
        }
        "/cameras" Manage Admin {
            get cameras::list => call(DATABASE, &[ROWS]);
        }

        "/unknowns" Manage Admin {
            get unknowns::list => call(UNKNOWNS, &[PAGE, ROWS]);
        }
        "/unknowns/recluster" Manage Admin {
            post unknowns::regroup => Call { tag: UNKNOWNS, ..job_call() };
        }
        "/unknowns/{unknown_id:[^/]*}" Manage Admin {
            get unknowns::get => call(UNKNOWNS, &[PATH, LIMIT, NO_UNKNOWN, ROWS]);
            delete unknowns::erase => call(UNKNOWNS, &[PATH, NO_UNKNOWN, FULL, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/merge" Manage Admin {
            post unknowns::merge => call(UNKNOWNS, &[PATH, JSON, UNKNOWN_IDS, NO_UNKNOWN, FULL, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/split" Manage Admin {
            post unknowns::split => call(UNKNOWNS, &[PATH, JSON, UNKNOWN_FACES, NO_UNKNOWN, FULL, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/pictures/{detection_id}" Manage Admin {
            get unknowns::picture => Call {
                headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
                ..call(UNKNOWNS, &[PATH, NO_UNKNOWN, NO_DETECTION, NO_PICTURE, ROWS])
            };
        }
        "/unknowns/{unknown_id:[^/]*}/name" Manage Admin {
            post unknowns::name =>
                call(UNKNOWNS, &[PATH, FACE_ID, JSON, EXISTS, NO_UNKNOWN, CHANGE, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/ignore" Manage Admin {
            post unknowns::ignore => call(UNKNOWNS, &[PATH, NO_UNKNOWN, FULL, ROWS]);
            delete unknowns::stop_ignoring => call(UNKNOWNS, &[PATH, NO_UNKNOWN, FULL, ROWS]);
        }
        "/proposals" Manage Admin {
            get proposals::list => call(UNKNOWNS, &[PAGE, FACE_ID, PERSON, ROWS]);
        }
        "/proposals/accept" Manage Admin {
            post proposals::accept => call(UNKNOWNS, &[JSON, SELECTED, PERSON, FULL, ROWS]);
        }
        "/proposals/refuse" Manage Admin {
            post proposals::refuse => call(UNKNOWNS, &[JSON, SELECTED, PERSON, FULL, ROWS]);
        }

        "/startupz" All Open {
            get health::started => call(SERVER, &[]);
        }
        "/livez" All Open {
            get health::live => call(SERVER, &[]);
        }
        "/readyz" All Open {
            get health::ready => call(SERVER, &[DRAINING, ROWS]);
        }
        "/openapi.json" All Open {
            get openapi::serve => call(SERVER, &[]);
        }
        "/debug/IP" All Admin {
            get debug::ip => call(DEBUG, &[]);
        }
        "/debug/node-name" All Admin {
            get debug::node_name => call(DEBUG, &[]);
        }
        "/debug/unblock-dataset" Manage Admin {
            post debug::unblock_dataset => call(DEBUG, &[FULL, ROWS]);
        }
    }
    pages {
        "/docs/guide" => guide::root;
        "/docs/guide/{file:.*}" => guide::file;
        "/docs" => openapi::page_root;
        "/docs/{file:.*}" => openapi::page_file;
    }
}

/// A call that starts a job.
const fn job_call() -> Call {
    Call {
        headers: &[(200, "Location"), (202, "Location")],
        links: &[Link {
            status: 202,
            to: ("GET", "/jobs/{job_id}"),
            parameters: &[("job_id", "$response.body#/job_id")],
        }],
        ..call(MODEL, &[QUERY, JOB, FULL, ROWS])
    }
}

/// The CSV form of a page of detections.
const CSV_EXAMPLE: &str = "id,captured_at,received_at,camera_id,location,face_id,confidence,score,threshold,detection_confidence,\
     model_version,track_id,left,top,right,bottom,person_id,claimed_at,time_basis,unknown_id,run_id,\
     sighting_id,crops,revised_at,revision\n\
     42,2024-05-06T07:08:09.25Z,2024-05-06T07:08:10.5Z,gate-1,Lobby,Ada Lovelace,0.875,0.8125,0.355,0.996,\
     7,12,112.5,64.0,208.0,186.5,018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c,,claim,,\
     fJ2bYb3bRk-GvJ0bC1m3nA,t4503599627370497,1,,\n";
/// What the sightings look like as CSV.
const SIGHTINGS_CSV_EXAMPLE: &str = "id,camera_id,location,run_id,track_id,first_captured_at,last_captured_at,face_id,person_id,\
     decision,confidence,score,threshold,model_version,crops,best_detection,open,updated_at\n\
     t4503599627370497,gate-1,Lobby,fJ2bYb3bRk-GvJ0bC1m3nA,12,2024-05-06T07:08:09.25Z,2024-05-06T07:08:13.5Z,\
     Ada Lovelace,018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c,known,0.875,0.8125,0.355,7,3,42,false,\
     2024-05-06T07:08:14Z\n";

/// Where the response to an enrolment has the parameters of the image's path.
const ENROLLED: &[(&str, &str)] =
    &[("id", "$response.body#/face_id"), ("image_id", "$response.body#/image_id")];

impl Route {
    /// The path as the document and the log have it, without the regular expressions of its parameters.
    pub fn plain_path(&self) -> String {
        without_patterns(self.path)
    }
}

/// The route of a matched pattern.
pub fn by_pattern(pattern: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == pattern)
}

/// Whether a path needs no token. Compares the path as it was sent: another spelling of an open path needs one.
pub fn is_open(path: &str) -> bool {
    let covers = |pattern: &str| match pattern.split_once('{') {
        Some((folder, _)) => path.starts_with(folder),
        None => path == pattern,
    };
    ROUTES.iter().any(|route| route.access == Access::Open && covers(route.path))
}

/// Whether a camera's token may POST to a path: to every path, known or not, below the first segment of a route for
/// cameras.
pub fn is_for_cameras(path: &str) -> bool {
    fn area(path: &str) -> Option<&str> {
        let (end, _) = path.match_indices('/').nth(1)?;
        path.get(..=end)
    }
    let of_path = area(path);
    of_path.is_some()
        && ROUTES.iter().any(|route| route.access == Access::Camera && area(route.path) == of_path)
}

/// `/dataset/{id:[^/]*}` as `/dataset/{id}`.
pub fn without_patterns(path: &str) -> String {
    let (mut plain, mut in_braces, mut in_pattern) = (String::new(), false, false);
    for character in path.chars() {
        match character {
            '{' => in_braces = true,
            '}' => (in_braces, in_pattern) = (false, false),
            ':' if in_braces => in_pattern = true,
            _ => (),
        }
        if !in_pattern {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_route_is_covered_by_the_access_of_another() {
        for route in ROUTES {
            assert_eq!(is_open(route.path), route.access == Access::Open, "{}", route.path);
            assert_eq!(is_for_cameras(route.path), route.access == Access::Camera, "{}", route.path);
        }
    }

    #[test]
    fn patterns_are_removed_from_paths() {
        for (path, plain) in [
            ("/dataset", "/dataset"),
            ("/dataset/{id:[^/]*}", "/dataset/{id}"),
            ("/dataset/{id:[^/]*}/image/{image_id}", "/dataset/{id}/image/{image_id}"),
            ("/a:b/{id:[^/]*}/c/{d}", "/a:b/{id}/c/{d}"),
        ] {
            assert_eq!(without_patterns(path), plain);
        }
    }

    #[test]
    fn open_paths_are_those_of_the_table_as_they_are_spelled() {
        for path in [
            "/",
            "/livez",
            "/readyz",
            "/startupz",
            "/openapi.json",
            "/docs",
            "/docs/",
            "/docs/x.js",
            "/docs/guide/a/b",
        ] {
            assert!(is_open(path), "{path}");
        }
        for path in
            ["", "//", "/livez/", "/%6civez", "/docsx", "/dataset", "/debug/IP", "/face-recognition/verify"]
        {
            assert!(!is_open(path), "{path}");
        }
    }

    #[test]
    fn cameras_may_post_below_the_recognition_path() {
        for path in ["/face-recognition/store-results", "/face-recognition/nothing", "/face-recognition/"] {
            assert!(is_for_cameras(path), "{path}");
        }
        for path in ["/", "", "/face-recognition", "/face-recognitionx/verify", "/dataset/Ada", "/nothing"] {
            assert!(!is_for_cameras(path), "{path}");
        }
    }

    #[test]
    fn each_path_stands_in_the_table_once() {
        for route in ROUTES {
            assert_eq!(ROUTES.iter().filter(|other| other.path == route.path).count(), 1, "{}", route.path);
        }
    }
}
