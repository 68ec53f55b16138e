//! Small files that must survive a crash and be read by nobody else: written whole or not at all, mode 0600.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// No file kept here is larger; what is, is not ours.
const BYTES_MAX: u64 = 256 * 1024;

/// Writes `bytes` to `path`: a sibling file first, fsync, rename, fsync of the folder. After a crash the path holds
/// the old content or the new one. The folder is made (mode 0700) if it is missing.
///
/// # Errors
/// Those of the file system, with the path in the text.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let write = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let sibling = folder.join(name);
        // One left by a crash of a process with our number may have any content and any mode.
        match fs::remove_file(&sibling) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&sibling)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&sibling, path));
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&sibling);
        }
        written?;
        File::open(folder)?.sync_all()
    };
    write().map_err(named)
}

/// Reads a file that [`write`] wrote; `None` if there is none.
///
/// # Errors
/// Those of the file system; a file that others may read or that is larger than 256 KiB. All name the path.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(error)),
    };
    let about = file.metadata().map_err(named)?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let text = format!("mode {mode:04o} lets others read a secret. Try: chmod 600 {}", path.display());
        return Err(named(io::Error::new(io::ErrorKind::PermissionDenied, text)));
    }
    if !about.is_file() || about.len() > BYTES_MAX {
        return Err(named(io::Error::new(io::ErrorKind::InvalidData, "not a file of ours: too large, or no file")));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(named)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written files are private and whole, overwriting leaves nothing behind, and errors name the path.
    #[test]
    fn private_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/secret");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(b"two".as_slice()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("0644") && error.contains("chmod 600") && error.contains("secret"), "{error}");
        let error = write(&path.join("below"), b"x").unwrap_err().to_string();
        assert!(error.contains("secret/below"), "{error}");
    }
}
