//! `install-cni`, `cni-status` and `uninstall-cni`: put the CNI plugin on a node, keep it there, see whether it is, and take it away again.
//!
//! | file | holds |
//! |---|---|
//! | [`conflist`] | where our entry belongs and what the file then says, decided without IO |
//! | [`fight`] | when to stop putting back what somebody else keeps removing, decided without IO |
//! | [`folder`] | reads files, and replaces them whole |
//! | `installer` | compares desired and real, again and again |
//! | [`multus`] | the same where Multus makes its file of another CNI's, decided without IO |
//! | `status` | sees whether the runtime finds the plugin |
//! | `uninstall` | takes everything away |
//! | [`watch`] | waits for changes and signals |

pub mod conflist;
pub mod fight;
pub mod folder;
mod installer;
pub mod multus;
mod status;
mod uninstall;
pub mod watch;

use std::path::PathBuf;

/// What the keeper's program does besides keeping.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Puts the CNI plugin on this node and keeps it there.
    ///
    /// The plugin's binary is copied, then its entry is added to the end of the configuration that the runtime uses: the first .conf,
    /// .conflist or .json by name. A .conflist gets the entry; from a single plugin's .conf or .json, or from a symbolic link, a .conflist is
    /// derived that sorts right before it. Multus' 00-multus.conf gets the entry in the network that it has within. When the CNI rewrites its files, the entry is put in again. Without a configuration it waits.
    ///
    /// It runs until SIGTERM or SIGINT and then removes nothing: see uninstall-cni.
    InstallCni(Install),
    /// Shows where the CNI plugin's entry is. Fails when the runtime does not find the plugin, and says why.
    ///
    /// It changes nothing. What counts is the configuration that the runtime uses, the first by name: for a readiness probe.
    CniStatus(CniStatus),
    /// Takes the CNI plugin off this node.
    ///
    /// The entry goes out of every file first, then the plugin's binary is removed. What is gone already is no error. Stop install-cni before.
    UninstallCni(Uninstall),
}

/// Where plugins and configurations are.
#[derive(Clone, Debug, clap::Args)]
struct Folders {
    /// The folder of the runtime's CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin", env = "PILLION_CNI_BIN_DIR")]
    bin_dir: PathBuf,
    /// The folder of the runtime's CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", env = "PILLION_CNI_CONF_DIR")]
    conf_dir: PathBuf,
}

/// What `install-cni` is told.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  pillion-keeper install-cni --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d

The node's folders must be mounted there, not read-only. With Cilium, set cni.exclusive=false.")]
pub struct Install {
    #[command(flatten)]
    folders: Folders,
    /// The plugin's binary [default: pillion-cni beside this program]
    #[arg(long, value_name = "PATH", env = "PILLION_CNI_PLUGIN")]
    plugin: Option<PathBuf>,
    /// The keeper's socket as the node sees it: it is written into the entry
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/keeper/cni.sock", env = "PILLION_CNI_SOCKET")]
    #[arg(value_parser = socket)]
    cni_socket: String,
    /// Do it once and end; fail if the entry could not be put in
    #[arg(long)]
    once: bool,
}

/// What `cni-status` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct CniStatus {
    #[command(flatten)]
    folders: Folders,
    /// The keeper's socket as it is to be in the entry
    #[arg(long, value_name = "PATH", default_value = "/run/pillion/keeper/cni.sock", env = "PILLION_CNI_SOCKET")]
    #[arg(value_parser = socket)]
    cni_socket: String,
}

/// What `uninstall-cni` is told.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Example:
  pillion-keeper uninstall-cni --bin-dir /host/opt/cni/bin --conf-dir /host/etc/cni/net.d")]
pub struct Uninstall {
    #[command(flatten)]
    folders: Folders,
}

/// A path that every process of the node understands and that fits a socket's address.
fn socket(path: &str) -> Result<String, String> {
    match path.len() {
        ..108 if path.starts_with('/') => Ok(path.to_owned()),
        _ => Err("it must be an absolute path of at most 107 bytes".into()),
    }
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    ///
    /// What a person must mend.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::InstallCni(install) => install.run(),
            Self::CniStatus(status) => status.run(),
            Self::UninstallCni(uninstall) => uninstall.run(),
        }
    }
}
