//! The routes: one table of paths, roles, methods, scopes and handlers, and the document's details of each call.
//! Routing, 405 and its `Allow`, roles, tokens and the document follow from it.

use std::sync::LazyLock;

use actix_web::{
    dev::{Path, ResourceDef},
    http::Method,
    web as actix,
};
use paperclip::actix::web;

use super::{
    access, audit, cameras, cohort, database, dataset, debug, detections, guide, health, images, jobs,
    method_not_allowed, model,
    openapi::{
        self, ACCESS, AUDIT, Call, DATABASE, DATASET, DEBUG, Link, MODEL, RECOGNITION, SERVER, UNKNOWNS, call,
    },
    people, proposals, recognition, root, sightings, unknowns, verify,
};
use crate::{
    access::{Scope, Scopes},
    config::ServerRole,
    domain::AuditAction,
    error::examples::{
        ACCESS_FIELDS, CAMERA, CHANGE, DETAILS, DRAINING, DUPLICATE, EXISTS, FACE_ID, FIRST_PRINCIPAL, FORM,
        FULL, IMAGE, IMAGE_PARTS, JOB, JOB_END, JSON, LIMIT, MODEL_READ, MODEL_REMOVAL, MODELS, NEVER_SEEN,
        NO_DETECTION, NO_IMAGE, NO_JOB, NO_PICTURE, NO_PRINCIPAL, NO_TOKEN, NO_UNKNOWN, NOT_IN_MODEL,
        ONE_FACE, OWN_CAMERA, PAGE, PATH, PERSON, PERSON_IMAGE, PRINCIPAL_EXISTS, QUALITY, QUERY, QUEUE,
        ROWS, SELECTED, SELECTION, SEND, TWO_IMAGES, UNKNOWN_FACES, UNKNOWN_IDS,
    },
};

/// A path and its methods.
pub struct Route {
    /// The pattern of the path, as actix has it.
    pub path: &'static str,
    /// The servers that serve it; [`ServerRole::All`] for every server.
    pub role: ServerRole,
    /// Its methods.
    pub methods: &'static [RouteMethod],
}

/// A method of a route.
pub struct RouteMethod {
    /// In lower case.
    pub name: &'static str,
    /// The scope that it needs on a server that has tokens; `None` for none: probes, and the document with its pages.
    pub scope: Option<Scope>,
    /// The action that the audit log records for it; `None` for calls that show nobody and change nothing.
    pub audit: Option<AuditAction>,
    /// Its entry in the document; `None` for a page.
    pub call: Option<Call>,
}

macro_rules! scope {
    (Open) => {
        None
    };
    ($scope:ident) => {
        Some(Scope::$scope)
    };
}

macro_rules! audit {
    (Unaudited) => {
        None
    };
    ($action:ident) => {
        Some(AuditAction::$action)
    };
}

macro_rules! routes {
    (
        calls { $($path:literal $role:ident {
            $($method:ident $scope:ident $audit:ident $handler:path => $call:expr;)+
        })+ }
        pages { $($page:literal => $page_handler:path;)+ }
    ) => {
        /// All routes.
        pub const ROUTES: &[Route] = &[
            $(Route {
                path: $path,
                role: ServerRole::$role,
                methods: &[$(RouteMethod {
                    name: stringify!($method),
                    scope: scope!($scope),
                    audit: audit!($audit),
                    call: Some($call),
                }),+],
            },)+
            $(Route {
                path: $page,
                role: ServerRole::All,
                methods: &[RouteMethod { name: "get", scope: None, audit: None, call: None }],
            },)+
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
        "/" All {
            get Open Unaudited root::describe_service => Call {
                headers: &[(200, "Vary"), (307, "Location"), (307, "Vary")],
                ..call(SERVER, &[])
            };
        }

        "/dataset" Manage {
            get Read Look dataset::list => call(DATASET, &[LIMIT, ROWS]);
        }
        // An empty id is an invalid id, not an unknown path.
        "/dataset/{id:[^/]*}" Manage {
            get Read Look dataset::images => call(DATASET, &[FACE_ID, PERSON, ROWS]);
            post Enrol Enrol dataset::add => call(DATASET, &[FACE_ID, EXISTS, CHANGE, ROWS]);
            patch Enrol Change dataset::rename => call(DATASET, &[FACE_ID, JSON, PERSON, EXISTS, CHANGE, ROWS]);
            delete Enrol Erase dataset::erase => Call {
                headers: &[(204, "Cache-Control")],
                ..call(DATASET, &[FACE_ID, PERSON, CHANGE, ROWS])
            };
        }
        "/dataset/{id:[^/]*}/image" Manage {
            post Enrol Enrol dataset::add_image => Call {
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
        "/dataset/{id:[^/]*}/image/{image_id}" Manage {
            get Read Look dataset::image => Call {
                headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
                ..call(DATASET, &[FACE_ID, PERSON_IMAGE, NO_PICTURE, ROWS])
            };
            delete Enrol Erase dataset::erase_image => call(DATASET, &[FACE_ID, PERSON_IMAGE, CHANGE, ROWS]);
        }
        "/people" Manage {
            get Read Look people::list => call(DATASET, &[LIMIT, ROWS]);
            post Enrol Enrol people::add => call(DATASET, &[FACE_ID, JSON, EXISTS, CHANGE, ROWS]);
        }
        "/people/search" Manage {
            post Read Look people::search => call(DATASET, &[FACE_ID, JSON, PERSON, ROWS]);
        }
        "/people/{person_id}" Manage {
            get Read Look people::images => call(DATASET, &[PATH, PERSON, ROWS]);
            patch Enrol Change people::rename => call(DATASET, &[FACE_ID, JSON, PERSON, EXISTS, CHANGE, ROWS]);
            delete Enrol Erase people::erase => Call {
                headers: &[(204, "Cache-Control")],
                ..call(DATASET, &[PATH, PERSON, CHANGE, ROWS])
            };
        }
        "/people/{person_id}/images" Manage {
            post Enrol Enrol people::add_image =>
                call(DATASET, &[PATH, PERSON, FORM, IMAGE, DUPLICATE, ONE_FACE, QUALITY, QUEUE, CHANGE, ROWS]);
        }
        "/people/{person_id}/track" Manage {
            get Read Look people::track => call(DATABASE, &[PAGE, PATH, PERSON, ROWS]);
        }
        "/people/{person_id}/search-past" Manage {
            post Operate Search people::search_past => Call {
                tag: UNKNOWNS,
                errors: &[PATH, PERSON, NOT_IN_MODEL, QUERY, JOB, FULL, ROWS],
                ..job_call()
            };
        }
        "/people/{person_id}/last-known-location" Manage {
            get Read Look people::last_known_location => call(DATABASE, &[PATH, PERSON, NEVER_SEEN, ROWS]);
        }
        "/images/{image_id}" Manage {
            get Read Look images::get => call(DATASET, &[PATH, NO_IMAGE, ROWS]);
            delete Enrol Erase images::erase => call(DATASET, &[PATH, NO_IMAGE, CHANGE, ROWS]);
        }
        "/images/{image_id}/content" Manage {
            get Read Look images::content => Call {
                headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
                ..call(DATASET, &[PATH, NO_IMAGE, NO_PICTURE, ROWS])
            };
        }

        "/cohort" Manage {
            get Read Unaudited cohort::show => call(MODEL, &[ROWS]);
            put Operate Enrol cohort::add => Call {
                headers: &[(200, "Server-Timing")],
                ..call(MODEL, &[FORM, IMAGE_PARTS, QUEUE, FULL, ROWS])
            };
            delete Operate Erase cohort::erase => call(MODEL, &[SELECTION, FULL, ROWS]);
        }

        "/model" Manage {
            get Read Look model::list => call(MODEL, &[ROWS]);
        }
        "/model/optimized-train" Manage {
            post Operate Train model::optimized_train => job_call();
        }
        "/model/train" Manage {
            post Operate Train model::train => job_call();
        }
        "/model/generate-emb" Manage {
            post Operate Train model::generate_emb => job_call();
        }
        "/model/{version}" Manage {
            get Read Look model::get => call(MODEL, &[PATH, MODEL_READ, ROWS]);
            delete Operate Erase model::remove => call(MODEL, &[PATH, MODEL_REMOVAL, FULL, ROWS]);
        }
        "/model/{version}/activate" Manage {
            post Operate Activate model::activate => call(MODEL, &[PATH, MODELS, FULL, ROWS]);
        }
        "/jobs" Manage {
            get Read Look jobs::list => call(MODEL, &[LIMIT, ROWS]);
        }
        "/jobs/{job_id}" Manage {
            get Read Look jobs::get => call(MODEL, &[PATH, NO_JOB, ROWS]);
            delete Operate Operate jobs::cancel => call(MODEL, &[PATH, JOB_END, FULL, ROWS]);
        }

        "/face-recognition/get-results" Recognize {
            get Recognise Recognise recognition::get_results => Call {
                headers: &[(200, "Server-Timing")],
                ..call(RECOGNITION, &[FORM, IMAGE, DETAILS, QUEUE, ROWS])
            };
            post Recognise Recognise recognition::get_results => Call {
                headers: &[(200, "Server-Timing")],
                ..call(RECOGNITION, &[FORM, IMAGE, DETAILS, QUEUE, ROWS])
            };
        }
        "/face-recognition/store-results" Recognize {
            post Upload Recognise recognition::store_results => Call {
                headers: &[(201, "Server-Timing")],
                required: &["camera_id", "location"],
                ..call(RECOGNITION, &[FORM, IMAGE, CAMERA, OWN_CAMERA, DETAILS, QUEUE, FULL, ROWS])
            };
        }
        "/face-recognition/send-results" Recognize {
            post Upload Recognise recognition::send_results => Call {
                headers: &[(202, "Server-Timing")],
                required: &["camera_id", "location"],
                ..call(RECOGNITION, &[FORM, IMAGE, SEND, OWN_CAMERA, DETAILS, QUEUE, FULL, ROWS])
            };
        }
        "/face-recognition/verify" Recognize {
            post Recognise Recognise verify::verify => Call {
                headers: &[(200, "Server-Timing")],
                ..call(RECOGNITION, &[FORM, TWO_IMAGES, ONE_FACE, QUEUE])
            };
        }
        "/face-recognition/dry-run" Recognize {
            post Upload Unaudited recognition::dry_run => call(RECOGNITION, &[FORM, IMAGE_PARTS, DETAILS]);
        }

        "/database/people" Manage {
            get Read Look database::people => call(DATABASE, &[ROWS]);
        }
        "/database/detections" Manage {
            get Read Look detections::list => Call {
                headers: &[(200, "Vary"), (200, "X-Next-Cursor")],
                also: &[(200, "text/csv", CSV_EXAMPLE)],
                ..call(DATABASE, &[PAGE, FACE_ID, PERSON, ROWS])
            };
        }
        "/database/sightings" Manage {
            get Read Look sightings::list => Call {
                headers: &[(200, "Vary"), (200, "X-Next-Cursor")],
                also: &[(200, "text/csv", SIGHTINGS_CSV_EXAMPLE)],
                ..call(DATABASE, &[PAGE, FACE_ID, PERSON, ROWS])
            };
        }
        "/database/{id:[^/]*}/track" Manage {
            get Read Look detections::track => call(DATABASE, &[PAGE, FACE_ID, PERSON, ROWS]);
        }
        "/database/{id:[^/]*}/last-known-location" Manage {
            get Read Look database::last_known_location => call(DATABASE, &[FACE_ID, PERSON, NEVER_SEEN, ROWS]);
        }
        // These paths follow those of a person: a person may be called “detections”.
        "/database/detections/{detection_id:[^/]*}" Manage {
            get Read Look detections::get => call(DATABASE, &[PATH, NO_DETECTION, ROWS]);
            delete Enrol Erase detections::erase => call(DATABASE, &[PATH, NO_DETECTION, FULL, ROWS]);
        }
        "/cameras" Manage {
            get Read Unaudited cameras::list => call(DATABASE, &[ROWS]);
        }

        "/unknowns" Manage {
            get Read Look unknowns::list => call(UNKNOWNS, &[PAGE, ROWS]);
        }
        "/unknowns/recluster" Manage {
            post Operate Train unknowns::regroup => Call { tag: UNKNOWNS, ..job_call() };
        }
        "/unknowns/{unknown_id:[^/]*}" Manage {
            get Read Look unknowns::get => call(UNKNOWNS, &[PATH, LIMIT, NO_UNKNOWN, ROWS]);
            delete Enrol Erase unknowns::erase => call(UNKNOWNS, &[PATH, NO_UNKNOWN, FULL, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/merge" Manage {
            post Enrol Change unknowns::merge => call(UNKNOWNS, &[PATH, JSON, UNKNOWN_IDS, NO_UNKNOWN, FULL, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/split" Manage {
            post Enrol Change unknowns::split => call(UNKNOWNS, &[PATH, JSON, UNKNOWN_FACES, NO_UNKNOWN, FULL, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/pictures/{detection_id}" Manage {
            get Read Look unknowns::picture => Call {
                headers: &[(200, "Cache-Control"), (200, "X-Content-Type-Options")],
                ..call(UNKNOWNS, &[PATH, NO_UNKNOWN, NO_DETECTION, NO_PICTURE, ROWS])
            };
        }
        "/unknowns/{unknown_id:[^/]*}/name" Manage {
            post Enrol Enrol unknowns::name =>
                call(UNKNOWNS, &[PATH, FACE_ID, JSON, EXISTS, NO_UNKNOWN, CHANGE, ROWS]);
        }
        "/unknowns/{unknown_id:[^/]*}/ignore" Manage {
            post Enrol Change unknowns::ignore => call(UNKNOWNS, &[PATH, NO_UNKNOWN, FULL, ROWS]);
            delete Enrol Change unknowns::stop_ignoring => call(UNKNOWNS, &[PATH, NO_UNKNOWN, FULL, ROWS]);
        }
        "/proposals" Manage {
            get Read Look proposals::list => call(UNKNOWNS, &[PAGE, FACE_ID, PERSON, ROWS]);
        }
        "/proposals/accept" Manage {
            post Enrol Enrol proposals::accept => call(UNKNOWNS, &[JSON, SELECTED, PERSON, FULL, ROWS]);
        }
        "/proposals/refuse" Manage {
            post Enrol Change proposals::refuse => call(UNKNOWNS, &[JSON, SELECTED, PERSON, FULL, ROWS]);
        }

        "/audit" Manage {
            get Admin Export audit::list => call(AUDIT, &[LIMIT, ROWS]);
        }
        "/audit/verify" Manage {
            get Admin Unaudited audit::verify => call(AUDIT, &[ROWS]);
        }

        "/access/principals" Manage {
            get Admin Unaudited access::list => call(ACCESS, &[ROWS]);
            post Admin Access access::add => call(ACCESS, &[JSON, ACCESS_FIELDS, PRINCIPAL_EXISTS, FIRST_PRINCIPAL, FULL, ROWS]);
        }
        "/access/principals/{principal_id}" Manage {
            get Admin Unaudited access::get => call(ACCESS, &[PATH, NO_PRINCIPAL, ROWS]);
            patch Admin Access access::change =>
                call(ACCESS, &[PATH, JSON, ACCESS_FIELDS, NO_PRINCIPAL, PRINCIPAL_EXISTS, FULL, ROWS]);
            delete Admin Access access::remove => call(ACCESS, &[PATH, NO_PRINCIPAL, FULL, ROWS]);
        }
        "/access/principals/{principal_id}/tokens" Manage {
            get Admin Unaudited access::tokens => call(ACCESS, &[PATH, NO_PRINCIPAL, ROWS]);
            post Admin Access access::add_token => call(ACCESS, &[PATH, JSON, ACCESS_FIELDS, NO_PRINCIPAL, FULL, ROWS]);
        }
        "/access/tokens/{token_id}" Manage {
            delete Admin Access access::revoke => call(ACCESS, &[PATH, NO_TOKEN, FULL, ROWS]);
        }
        "/access/tokens/{token_id}/rotate" Manage {
            post Admin Access access::rotate => call(ACCESS, &[PATH, JSON, ACCESS_FIELDS, NO_TOKEN, FULL, ROWS]);
        }

        "/startupz" All {
            get Open Unaudited health::started => call(SERVER, &[]);
        }
        "/livez" All {
            get Open Unaudited health::live => call(SERVER, &[]);
        }
        "/readyz" All {
            get Open Unaudited health::ready => call(SERVER, &[DRAINING, ROWS]);
        }
        "/openapi.json" All {
            get Open Unaudited openapi::serve => call(SERVER, &[]);
        }
        "/debug/IP" All {
            get Operate Unaudited debug::ip => call(DEBUG, &[]);
        }
        "/debug/node-name" All {
            get Operate Unaudited debug::node_name => call(DEBUG, &[]);
        }
        "/debug/unblock-dataset" Manage {
            post Operate Operate debug::unblock_dataset => call(DEBUG, &[FULL, ROWS]);
        }
    }
    pages {
        "/docs/guide" => guide::root;
        "/docs/guide/{file:.*}" => guide::file;
        "/docs" => openapi::page_root;
        "/docs/{file:.*}" => openapi::page_file;
    }
}

/// Returns a call that starts a job.
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
/// An example of sightings as CSV.
const SIGHTINGS_CSV_EXAMPLE: &str = "id,camera_id,location,run_id,track_id,first_captured_at,last_captured_at,face_id,person_id,\
     decision,confidence,score,threshold,model_version,crops,best_detection,open,updated_at\n\
     t4503599627370497,gate-1,Lobby,fJ2bYb3bRk-GvJ0bC1m3nA,12,2024-05-06T07:08:09.25Z,2024-05-06T07:08:13.5Z,\
     Ada Lovelace,018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c,known,0.875,0.8125,0.355,7,3,42,false,\
     2024-05-06T07:08:14Z\n";

/// The fields of an enrolment's response that are the parameters of the image's path.
const ENROLLED: &[(&str, &str)] =
    &[("id", "$response.body#/face_id"), ("image_id", "$response.body#/image_id")];

impl Route {
    /// Returns the path as the document and the log have it, without the regular expressions of its parameters.
    pub fn plain_path(&self) -> String {
        without_patterns(self.path)
    }
}

/// Returns the route of a matched pattern.
pub fn by_pattern(pattern: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| route.path == pattern)
}

/// The requirement for admitting a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing.
    Open,
    /// Any of these scopes.
    Any(Scopes),
}

/// The patterns of all routes, in their order.
static PATTERNS: LazyLock<Vec<(ResourceDef, &'static Route)>> =
    LazyLock::new(|| ROUTES.iter().map(|route| (ResourceDef::new(route.path), route)).collect());

/// Returns the route that requests for a path reach. `path` is the one that the router matches, in which characters
/// that need no escape are not escaped.
pub fn matching(path: &str) -> Option<&'static Route> {
    PATTERNS.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, route)| *route)
}

/// Returns the route that requests for a path reach, and the values of its parameters, which may still be percent-encoded.
pub fn matching_with_parameters(path: &str) -> Option<(&'static Route, Vec<(String, String)>)> {
    let mut captured = Path::new(path);
    let (_, route) = PATTERNS.iter().find(|(pattern, _)| pattern.capture_match_info(&mut captured))?;
    Some((*route, captured.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

/// Returns the method of a route that a request has; HEAD is GET.
pub fn method_of(route: &'static Route, method: &Method) -> Option<&'static RouteMethod> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    route.methods.iter().find(|taken| taken.name.eq_ignore_ascii_case(method.as_str()))
}

/// Returns whether a path is that of a probe, which the server answers at any load.
pub fn is_probe(path: &str) -> bool {
    matches!(path, "/startupz" | "/livez" | "/readyz")
}

/// Returns the requirement of a request: `sent` is its path as the client sent it, `matched` as the router matches it.
/// Another spelling of an open path is not open, an unknown path needs `admin`, and a method that a path does not take
/// needs a scope of one that it takes.
pub fn requirement(method: &Method, sent: &str, matched: &str) -> Requirement {
    let Some(route) = matching(matched) else { return Requirement::Any(Scopes::ADMIN) };
    let taken = method_of(route, method);
    let asked = taken.map_or(route.methods, std::slice::from_ref);
    let needs_none = asked.iter().any(|method| method.scope.is_none());
    if !needs_none {
        return Requirement::Any(asked.iter().filter_map(|method| method.scope).collect());
    }
    match matching(sent) {
        Some(plain) if plain.path == route.path => Requirement::Open,
        _ => Requirement::Any(Scope::ALL.into_iter().collect()),
    }
}

/// Converts `/dataset/{id:[^/]*}` to `/dataset/{id}`.
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

    fn needed(method: Method, path: &str) -> Requirement {
        requirement(&method, path, path)
    }

    #[test]
    fn every_route_is_reached_by_its_own_pattern() {
        for route in ROUTES {
            let path: Vec<String> = route
                .plain_path()
                .split('/')
                .map(|part| if part.starts_with('{') { "7".to_owned() } else { part.to_owned() })
                .collect();
            let path = path.join("/");
            assert!(matching(&path).is_some_and(|found| found.path == route.path), "{path}");
        }
    }

    #[test]
    fn a_request_needs_the_scope_of_the_method_of_its_route() {
        let any = |scopes: &str| Requirement::Any(scopes.parse().unwrap());
        for (method, path, scopes) in [
            (Method::POST, "/face-recognition/store-results", "upload"),
            (Method::POST, "/face-recognition/send-results", "upload"),
            (Method::POST, "/face-recognition/get-results", "recognise"),
            (Method::POST, "/face-recognition/verify", "recognise"),
            (Method::GET, "/dataset/Ada", "read"),
            (Method::HEAD, "/dataset/Ada", "read"),
            (Method::POST, "/people/search", "read"),
            (Method::DELETE, "/dataset/Ada", "enrol"),
            (Method::POST, "/unknowns/7/name", "enrol"),
            (Method::POST, "/unknowns/recluster", "operate"),
            (Method::DELETE, "/jobs/7", "operate"),
            (Method::POST, "/model/7/activate", "operate"),
            (Method::GET, "/nothing", "admin"),
            (Method::POST, "/face-recognition/nothing", "admin"),
            (Method::PUT, "/dataset/Ada", "read,enrol"),
        ] {
            assert_eq!(needed(method.clone(), path), any(scopes), "{method} {path}");
        }
    }

    #[test]
    fn an_escaped_path_needs_what_the_route_needs_that_it_reaches() {
        // A reader may not start a job by another spelling of its path.
        let request = requirement(&Method::POST, "/unknowns/%72ecluster", "/unknowns/recluster");
        assert_eq!(request, needed(Method::POST, "/unknowns/recluster"));
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
            for method in [Method::GET, Method::HEAD, Method::POST] {
                assert_eq!(needed(method, path), Requirement::Open, "{path}");
            }
        }
        for path in ["", "//", "/livez/", "/docsx", "/dataset", "/debug/IP", "/face-recognition/verify"] {
            assert_ne!(needed(Method::GET, path), Requirement::Open, "{path}");
        }
        assert_ne!(requirement(&Method::GET, "/%6civez", "/livez"), Requirement::Open);
    }

    #[test]
    fn every_call_that_changes_something_or_shows_somebody_is_audited() {
        // Calls that may stay out of the log; every other call has an action.
        let unaudited = [
            "get /cohort",
            "get /cameras",
            "get /debug/IP",
            "get /debug/node-name",
            "get /audit/verify",
            "post /face-recognition/dry-run",
        ];
        for route in ROUTES {
            for method in route.methods {
                let call = format!("{} {}", method.name, route.plain_path());
                let reads_access = method.name == "get" && route.path.starts_with("/access");
                let may_stay_out =
                    method.scope.is_none() || reads_access || unaudited.contains(&call.as_str());
                assert_eq!(method.audit.is_none(), may_stay_out, "{call}");
                let reads = matches!(method.name, "get")
                    || matches!(method.scope, Some(Scope::Recognise | Scope::Upload))
                    || route.path == "/people/search";
                assert!(method.audit.is_none_or(|action| action.only_reads() == reads), "{call}");
            }
        }
    }

    #[test]
    fn parameters_of_a_path_are_found() {
        let (route, parameters) = matching_with_parameters("/dataset/Ada%20L/image/7").unwrap();
        assert_eq!(route.plain_path(), "/dataset/{id}/image/{image_id}");
        let parameters: Vec<(&str, &str)> =
            parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(parameters, [("id", "Ada%20L"), ("image_id", "7")]);
        assert!(matching_with_parameters("/nothing").is_none());
    }

    #[test]
    fn each_path_stands_in_the_table_once() {
        for route in ROUTES {
            assert_eq!(ROUTES.iter().filter(|other| other.path == route.path).count(), 1, "{}", route.path);
        }
    }
}
