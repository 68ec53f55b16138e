//! `ringspan registry export | import | snapshot | restore`: through the running bridge's admin socket, or on the store
//! itself where no bridge runs.
//! Promise: records go through a file in the data folder, so that their number is no limit; a snapshot is whole or not there;
//! a restore keeps what it replaces.

mod nacos;

use crate::bridge_cmd::{REGISTRY_FILE, registry_options};
use crate::cli::{self, DATA_DIR_DEFAULT};
use crate::config::bridge::Bridge;
use crate::keyring::Keyring;
use crate::office::{Answer, Request, unix_now};
use crate::{Ending, Failure, admin, machine};
use ringspan_registry::transfer::{self, Counts, Moved};
use ringspan_registry::{Options as RegistryOptions, Registry};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};

/// Runs the subcommand.
pub(crate) fn run(command: &cli::Registry) -> Result<Ending, Failure> {
    match command {
        cli::Registry::Export(args) => {
            let config = config(&args.whose)?;
            let scratch = Scratch::new(&config.data_dir)?;
            let counts = export(&config, &scratch.0)?;
            let mut from = File::open(&scratch.0).map_err(failed(&scratch.0))?;
            let copied = io::copy(&mut from, &mut io::stdout().lock()).map(drop);
            done("exported", counts, copied)
        }
        cli::Registry::Snapshot(args) => {
            let config = config(&args.whose)?;
            let scratch = Scratch::new(&config.data_dir)?;
            let counts = export(&config, &scratch.0)?;
            let kept = keep(&scratch.0, &args.file).map_err(failed(&args.file));
            kept.and_then(|()| done("in the snapshot", counts, Ok(())))
        }
        cli::Registry::Import(args) => {
            let config = config(&args.whose)?;
            let scratch = Scratch::new(&config.data_dir)?;
            match (&args.from_nacos, &args.file) {
                (Some(url), _) => {
                    let login = args.user.clone().zip(args.password.clone());
                    let found = nacos::read(url, login).map_err(Failure::Run)?;
                    let file = File::create(&scratch.0).map_err(failed(&scratch.0))?;
                    let written = transfer::write(found.into_iter(), &mut BufWriter::new(file));
                    written.map_err(failed(&scratch.0))?;
                }
                (None, Some(file)) => {
                    let mut from: Box<dyn Read> = match file.as_os_str() == "-" {
                        true => Box::new(io::stdin().lock()),
                        false => Box::new(File::open(file).map_err(usage(file))?),
                    };
                    let mut to = File::create(&scratch.0).map_err(failed(&scratch.0))?;
                    io::copy(&mut from, &mut to).map_err(failed(&scratch.0))?;
                }
                (None, None) => return Err(Failure::Usage("import what? Try: a file, - or --from-nacos URL".into())),
            }
            done("imported", import(&config, &scratch.0)?, Ok(()))
        }
        cli::Registry::Restore(args) => restore(&config(&args.whose)?, &args.file),
    }
}

fn done(what: &str, Counts { services, instances }: Counts, written: io::Result<()>) -> Result<Ending, Failure> {
    written.map_err(|e| Failure::Run(format!("stdout: {e}")))?;
    eprintln!("{services} services with {instances} persistent instances {what}");
    Ok(Ending::Good)
}

fn config(whose: &cli::Whose) -> Result<Bridge, Failure> {
    let config = match &whose.config {
        Some(file) => Bridge::read(file)?,
        None => {
            Bridge { data_dir: whose.data_dir.clone().unwrap_or_else(|| DATA_DIR_DEFAULT.into()), ..Bridge::default() }
        }
    };
    if !config.data_dir.exists() {
        return Err(Failure::Usage(format!(
            "data_dir {}: there is none. Try: --config bridge.toml, or --data-dir with the bridge's folder",
            config.data_dir.display()
        )));
    }
    Ok(config)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |e| Failure::Run(format!("{}: {e}", path.display()))
}

fn usage(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |e| Failure::Usage(format!("{}: {e}", path.display()))
}

/// A file in the data folder that goes with its owner: bridge and command are of one user there.
struct Scratch(PathBuf);

impl Scratch {
    fn new(data_dir: &Path) -> Result<Scratch, Failure> {
        let folder = data_dir.canonicalize().map_err(failed(data_dir))?;
        Ok(Scratch(folder.join(format!("transfer-{}.jsonl", std::process::id()))))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Copies a whole file to where it is to be; until it is on disk, under another name.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    let mut name = to.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let mut file = File::create(&fresh)?;
    io::copy(&mut File::open(from)?, &mut file)?;
    file.sync_all()?;
    std::fs::rename(&fresh, to)
}

fn export(config: &Bridge, to: &Path) -> Result<Counts, Failure> {
    match ask(config, &Request::RegistryExport { to: to.to_owned() })? {
        Some(counts) => Ok(counts),
        None => offline(config, |registry| export_to(registry, to)),
    }
}

fn import(config: &Bridge, from: &Path) -> Result<Counts, Failure> {
    match ask(config, &Request::RegistryImport { from: from.to_owned() })? {
        Some(counts) => Ok(counts),
        None => {
            let runtime = machine::runtime()?;
            offline(config, |registry| runtime.block_on(import_from(registry, from)))
        }
    }
}

/// Writes a registry's records to a file.
pub(crate) fn export_to(registry: &Registry, to: &Path) -> Result<Counts, String> {
    let file = File::create(to).map_err(|e| format!("{}: {e}", to.display()))?;
    transfer::export(registry, &mut BufWriter::new(file)).map_err(|e| format!("{}: {e}", to.display()))
}

/// Reads a file's records into a registry.
pub(crate) async fn import_from(registry: &Registry, from: &Path) -> Result<Counts, String> {
    let moved = read(from)?;
    transfer::import(registry, moved).await.map_err(|e| e.to_string())
}

fn read(from: &Path) -> Result<Vec<Moved>, String> {
    let file = File::open(from).map_err(|e| format!("{}: {e}", from.display()))?;
    transfer::read(&mut BufReader::new(file)).map_err(|e| e.to_string())
}

/// Asks the bridge that runs on the data folder. `None`: none runs there.
fn ask(config: &Bridge, request: &Request) -> Result<Option<Counts>, Failure> {
    let answer = admin::ask_patiently(&config.data_dir, request)
        .map_err(|e| Failure::Run(format!("{}: {e}", config.data_dir.join(admin::SOCKET).display())))?;
    match answer {
        None => Ok(None),
        Some(Answer::Registry(counts)) => Ok(Some(counts)),
        Some(Answer::Wrong(text) | Answer::Failed(text)) => Err(Failure::Run(text)),
        Some(other) => {
            Err(Failure::Run(format!("the bridge answered something else ({other:?}). Try: the same version")))
        }
    }
}

/// Does it on the store itself.
fn offline<T>(config: &Bridge, work: impl FnOnce(&Registry) -> Result<T, String>) -> Result<T, Failure> {
    if config.cluster.is_some() {
        return Err(Failure::Run(
            "the records are in etcd, and no bridge runs here. Try: start one, or etcdctl snapshot".into(),
        ));
    }
    let registry = Registry::open(&registry_options(config)).map_err(|e| Failure::Run(e.to_string()))?;
    let result = work(&registry);
    registry.stop();
    result.map_err(Failure::Run)
}

/// Puts a snapshot in the place of the store.
fn restore(config: &Bridge, file: &Path) -> Result<Ending, Failure> {
    if config.cluster.is_some() {
        return Err(Failure::Run(
            "the records are in etcd. Try: ringspan registry import, or etcdctl snapshot restore".into(),
        ));
    }
    let moved = read(file).map_err(Failure::Usage)?;
    // Held until the end: no bridge starts meanwhile.
    let _keyring = Keyring::open(&config.data_dir).map_err(|e| match e {
        crate::keyring::Error::Locked(_) => {
            Failure::Run("a bridge runs here. Try: stop it first, or ringspan registry import".into())
        }
        other => Failure::Run(other.to_string()),
    })?;
    let store = config.data_dir.join(REGISTRY_FILE);
    let beside = |suffix: &str| config.data_dir.join(format!("{REGISTRY_FILE}{suffix}"));
    let (fresh, fresh_note) = (beside(".restored"), beside(".restored.acknowledged"));
    for old in [&fresh, &fresh_note] {
        match std::fs::remove_file(old) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(old)(e)),
            Ok(()) | Err(_) => {}
        }
    }
    let options = RegistryOptions { path: Some(fresh.clone()), ..RegistryOptions::default() };
    let registry = Registry::open(&options).map_err(|e| Failure::Run(e.to_string()))?;
    let counts = machine::runtime()?.block_on(transfer::import(&registry, moved));
    registry.stop();
    let counts = counts.map_err(|e| Failure::Run(e.to_string()))?;
    // A process that dies between these steps leaves a store that refuses to start, and all of the files.
    if store.exists() {
        let aside = beside(&format!(".before-{}", unix_now()));
        std::fs::rename(&store, &aside).map_err(failed(&store))?;
        eprintln!("the store that was there is {} now", aside.display());
    }
    std::fs::rename(&fresh_note, beside(".acknowledged")).map_err(failed(&fresh_note))?;
    std::fs::rename(&fresh, &store).map_err(failed(&fresh))?;
    File::open(&config.data_dir).and_then(|folder| folder.sync_all()).map_err(failed(&config.data_dir))?;
    done("restored", counts, Ok(()))
}
