//! The API as its clients see it: every test starts a server on a free port with a folder of its own and speaks HTTP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod access;
mod audit;
mod auth;
mod backup;
mod blobs;
mod cohort;
mod command_line;
mod contract;
mod dataset;
mod debug;
mod deployment;
mod detections;
mod duplicates;
mod enrolment;
mod gallery;
mod guide;
mod helpers;
mod http;
mod jobs;
mod load;
mod locks;
mod metrics;
mod model;
mod names;
mod openapi;
mod outbox;
mod past;
mod people;
mod proxies;
mod recognition;
mod replicas;
mod request_id;
mod shares;
mod sqlite;
mod startup;
mod times;
mod tls;
mod tracks;
mod unknowns;
mod verify;
mod wrong_input;
