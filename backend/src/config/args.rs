//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use facepipe_shared::VERSION;

use super::Settings;

/// Face recognition over HTTP: enrol people, train, recognise faces on images, store who was seen where and when.
#[derive(Debug, Parser)]
#[command(
    name = "facepipe-backend",
    version = VERSION.as_str(),
    after_help = "\
Every setting can be given in a TOML file (--config; keys are the long flags with _ for -, e.g. \
`listen = \"0.0.0.0:8080\"`), in the environment, or on the command line, before or after a command; later ones \
override earlier ones. SIGTERM and SIGINT stop the server after it has responded to accepted requests; a second signal \
stops it at once.

Several servers may share a database server and the blobs. With --role, some of them only recognise and others do the \
rest; --drain-delay-s lets a load balancer take one out before it stops. `/startupz`, `/livez` and `/readyz` are the \
probes for startup, liveness and readiness; `facepipe-backend health` is a probe for containers without an HTTP client.

A first visit, in three commands:
  facepipe-backend &
  curl -X POST http://127.0.0.1:8080/dataset/Ada
  curl -F image=@ada.jpg http://127.0.0.1:8080/dataset/Ada/image

Then train and recognise:
  curl -X POST 'http://127.0.0.1:8080/model/optimized-train?wait=true'
  curl -F image=@visitor.jpg http://127.0.0.1:8080/face-recognition/get-results

Without any token, the server takes requests from its own machine only, and does not start on an address that other \
machines can reach. `facepipe-backend access add-admin NAME` prints the first token, and with it `facepipe access` gives \
cameras, people and programs theirs. Clients send `Authorization: Bearer <token>`: beyond this machine, serve https (--tls-certificate, \
--tls-key), or put a proxy with TLS in front.

  facepipe-backend migrate
  (umask 077; facepipe-backend access add-admin ada >ada.token)
  facepipe-backend --listen 0.0.0.0:8080 &
  facepipe access list --token-file ada.token

For emergencies there is --token-file, a file with one token a line, of at least 16 characters (`openssl rand -hex 32` makes \
one): `camera <token>` may upload and recognise, `admin <token>` may do everything. Empty lines and # comments are allowed. \
The file is read again when it changes, so that tokens can be added and removed without a restart; an empty file revokes \
all of its tokens."
)]
pub struct Args {
    /// Configuration file, TOML
    #[arg(long, env = "FACEPIPE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the configuration that would be used, as TOML, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Print the API's document, OpenAPI 3.0 as JSON, and exit; the server has it at /openapi.json and /docs
    #[arg(long)]
    pub print_openapi: bool,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What `facepipe-backend` does instead of serving, with the same settings.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Bring the database's schema up to date, and exit
    Migrate,
    /// Remove images and models that no row refers to, once, and exit
    Sweep,
    /// Delete detections that are older than --detections-max-age-days, once, and exit
    Retain {
        /// Trust this machine's clock even where it is far ahead of the last run
        #[arg(long)]
        trust_clock: bool,
    },
    /// Copy database and blobs into a new folder while servers run, and exit. PostgreSQL and MySQL are copied by their own
    /// tools, which must be installed: pg_dump, mariadb-dump or mysqldump
    Backup {
        /// The folder; it must not exist, and appears once it is complete
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Restore a backup into a new data folder or an empty database, repeat the erasures made since, and exit.
    /// PostgreSQL and MySQL need pg_restore, mariadb or mysql
    Restore {
        /// The folder that `backup` wrote
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Folder with further entries of the ledger of erasures: a copy of `erasures/` that is newer than the backup
        #[arg(long, value_name = "DIR")]
        erasures: Option<PathBuf>,
    },
    /// Manage access where no token can: on the server's machine, with its database
    #[command(subcommand)]
    Access(AccessCommand),
    /// Check whether a running server responds; exit with 0 if it does, else with 1
    Health {
        /// The server's URL [default: this machine, with the address of --listen or --address-file]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// Make what TLS needs, and exit
    Tls {
        /// What to make.
        #[command(subcommand)]
        command: TlsCommand,
    },
}

/// What TLS needs.
#[derive(Debug, Clone, Subcommand)]
pub enum TlsCommand {
    /// Make a key and a certificate that signs itself, for a first try: certificate.pem and key.pem. Clients must be given
    /// the certificate, or the digest of its key
    SelfSigned {
        /// A name or address of the server, as clients have it in their URLs; may be repeated [default: localhost, its
        /// addresses, and this machine's name]
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
        /// The folder of the files
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
}

/// Manages access without a token.
#[derive(Debug, Clone, Subcommand)]
pub enum AccessCommand {
    /// Print a new token that may do everything, for a person who is added unless there is one of this name. Running servers
    /// accept it within two seconds
    AddAdmin {
        /// What the person is called
        name: String,
        /// Days for which the token is valid
        #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
    },
}

impl Args {
    /// Reads the command line and the environment. An error, `--help` and `--version` end the process.
    pub fn read() -> Self {
        let matches = Self::command_with_global_settings().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Returns the environment variables of all settings.
    pub fn variables() -> Vec<String> {
        let command = Self::command();
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        variables.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// Returns the command line; its commands take every setting, too.
    pub(super) fn command_with_global_settings() -> clap::Command {
        Self::command().mut_args(|argument| {
            let is_of_the_server = argument.get_id().as_str().starts_with("print_");
            argument.global(!is_of_the_server)
        })
    }
}
