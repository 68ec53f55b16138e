//! What a MySQL check is told: who logs in, what is asked, and how much the network is trusted.

use crate::probe::tls::TlsClient;
use std::fmt;
use std::num::NonZeroU16;

/// The settings of the check: a login, and perhaps a question.
///
/// A server counts each failed login in `Aborted_connects`, also an "access denied" (measured, docs/probing.md). So give
/// the check an account of its own that may do nothing: `CREATE USER 'ringspan'@'%'` is enough for
/// [`MysqlAsk::Nothing`] and [`MysqlAsk::IsPrimary`].
#[derive(Clone, Debug)]
pub struct MysqlCheck {
    pub(super) user: String,
    pub(super) password: Secret,
    pub(super) database: Option<String>,
    pub(super) ask: MysqlAsk,
    pub(super) tls: MysqlTls,
    pub(super) takes_server_key: bool,
}

/// What is asked after the login.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum MysqlAsk {
    /// Nothing: the server is alive if it lets us in (`L7OK`) or says that it will not (`L7OKC`, with the error's number).
    #[default]
    Nothing,
    /// `show global variables where variable_name='read_only'`: OFF is a primary (`L7OK`), anything else a replica (`L7CONT`).
    IsPrimary,
    /// A statement of one's own.
    Statement {
        /// One statement, at most [`MysqlCheck::SQL_BYTES_MAX`] bytes. Its whole answer is read, up to 64 KiB.
        sql: String,
        /// What its first row must say; `None`: the statement must not fail.
        expect: Option<MysqlValue>,
    },
}

/// What the first row of an answer must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MysqlValue {
    /// In which column.
    pub column: MysqlColumn,
    /// The value as text, compared byte by byte. NULL equals nothing.
    pub value: String,
}

/// A column of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MysqlColumn {
    /// By its name or alias, upper and lower case alike.
    Name(String),
    /// By its place, from 1.
    Number(NonZeroU16),
}

/// How the connection is protected.
#[derive(Clone, Debug, Default)]
pub enum MysqlTls {
    /// Not: the login goes over the connection as it is. The password itself does not (see
    /// [`MysqlCheck::taking_server_key`]). Default.
    #[default]
    Off,
    /// With TLS if the server offers it, without if not. Whoever sits on the way can take the offer away. A handshake that
    /// fails is a failure.
    Preferred(TlsClient),
    /// With TLS; a server that does not offer it is not told who we are (`L6RSP`, client error 2026).
    Required(TlsClient),
}

/// A password. Prints as `***`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Takes it in; there is no way to print it.
    pub fn new(secret: impl Into<String>) -> Secret {
        Secret(secret.into())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Why settings are no check.
#[derive(Debug, thiserror::Error)]
pub enum MysqlError {
    /// Too long, or with a zero byte in it, which ends a string in the protocol.
    #[error("{what} must have 0 to {max} bytes and no zero byte; it has {bytes}")]
    Text {
        /// Which one.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
    /// A statement without a statement.
    #[error("the statement is empty. Leave it out to check the login alone")]
    NoStatement,
}

impl MysqlCheck {
    /// Who logs in when nobody is named.
    pub const USER_DEFAULT: &str = "ringspan";
    /// Bytes of a user's name (MySQL: 32 characters, MariaDB: 128), of up to 4 bytes each.
    pub const USER_BYTES_MAX: usize = 512;
    /// Bytes of a password: what RSA-OAEP with a key of 2048 bits carries (256 - 42), less the zero byte at its end.
    pub const PASSWORD_BYTES_MAX: usize = 213;
    /// Bytes of a database's name: 64 characters of up to 4 bytes.
    pub const DATABASE_BYTES_MAX: usize = 256;
    /// Bytes of a statement: it fits into one send with room for TLS.
    pub const SQL_BYTES_MAX: usize = 8 * 1024;
    /// What Nacos and others ask for to find the primary.
    pub const READ_ONLY_SQL: &str = "show global variables where variable_name='read_only'";

    /// Logs in as `user`, asks nothing, and leaves.
    ///
    /// # Errors
    /// Longer than [`MysqlCheck::USER_BYTES_MAX`] or [`MysqlCheck::PASSWORD_BYTES_MAX`], or with a zero byte.
    pub fn new(user: impl Into<String>, password: Secret) -> Result<MysqlCheck, MysqlError> {
        let user = user.into();
        is_text("user", &user, MysqlCheck::USER_BYTES_MAX)?;
        is_text("password", &password.0, MysqlCheck::PASSWORD_BYTES_MAX)?;
        Ok(MysqlCheck {
            user,
            password,
            database: None,
            ask: MysqlAsk::Nothing,
            tls: MysqlTls::Off,
            takes_server_key: false,
        })
    }

    /// The check that Nacos calls MYSQL: `cmd` is [`MysqlCheck::READ_ONLY_SQL`] letter by letter, and then the server must be
    /// the primary, or any other statement, which must not fail.
    ///
    /// # Errors
    /// As [`MysqlCheck::new`] and [`MysqlCheck::asking`].
    pub fn nacos(user: impl Into<String>, password: Secret, cmd: &str) -> Result<MysqlCheck, MysqlError> {
        let ask = match cmd {
            MysqlCheck::READ_ONLY_SQL => MysqlAsk::IsPrimary,
            sql => MysqlAsk::Statement { sql: sql.to_owned(), expect: None },
        };
        MysqlCheck::new(user, password)?.asking(ask)
    }

    /// Asks this after the login.
    ///
    /// # Errors
    /// An empty statement, or one longer than [`MysqlCheck::SQL_BYTES_MAX`].
    pub fn asking(mut self, ask: MysqlAsk) -> Result<MysqlCheck, MysqlError> {
        if let MysqlAsk::Statement { sql, .. } = &ask {
            if sql.trim().is_empty() {
                return Err(MysqlError::NoStatement);
            }
            if sql.len() > MysqlCheck::SQL_BYTES_MAX {
                return Err(MysqlError::Text {
                    what: "the statement",
                    bytes: sql.len(),
                    max: MysqlCheck::SQL_BYTES_MAX,
                });
            }
        }
        self.ask = ask;
        Ok(self)
    }

    /// Logs in to this database; the account must have a right to it.
    ///
    /// # Errors
    /// Longer than [`MysqlCheck::DATABASE_BYTES_MAX`], or with a zero byte.
    pub fn in_database(mut self, database: impl Into<String>) -> Result<MysqlCheck, MysqlError> {
        let database = database.into();
        is_text("database", &database, MysqlCheck::DATABASE_BYTES_MAX)?;
        self.database = (!database.is_empty()).then_some(database);
        Ok(self)
    }

    /// Protects the connection so. Default [`MysqlTls::Off`].
    pub fn over(mut self, tls: MysqlTls) -> MysqlCheck {
        self.tls = tls;
        self
    }

    /// How the connection is protected.
    pub fn tls(&self) -> &MysqlTls {
        &self.tls
    }

    /// Whether, without TLS, the password may be encrypted with an RSA key that the server itself has just sent. A server
    /// whose accounts use caching_sha2_password asks for that after each of its restarts, until somebody has logged in over
    /// TLS. Whoever sits on the way can send a key of his own and read the password, so the default is no: such a
    /// login is then given up (client error 2061).
    pub fn taking_server_key(mut self, yes: bool) -> MysqlCheck {
        self.takes_server_key = yes;
        self
    }
}

impl Default for MysqlCheck {
    /// [`MysqlCheck::USER_DEFAULT`] without a password, asking nothing.
    fn default() -> MysqlCheck {
        MysqlCheck::new(MysqlCheck::USER_DEFAULT, Secret::default()).expect("the default name is short")
    }
}

impl MysqlCheck {
    /// Nobody: who says hello for good manners alone.
    pub(super) fn nobody() -> MysqlCheck {
        MysqlCheck::new("", Secret::default()).expect("no name is a short one")
    }
}

fn is_text(what: &'static str, text: &str, max: usize) -> Result<(), MysqlError> {
    if text.len() > max || text.contains('\0') {
        return Err(MysqlError::Text { what, bytes: text.len(), max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing that can be printed shows a password.
    #[test]
    fn passwords_are_not_shown() {
        let check = MysqlCheck::new("ok", Secret::new("open sesame")).unwrap();
        let shown = format!("{check:?} {:#?}", crate::check::Check::Mysql(check.clone().into()));
        assert!(shown.contains("***") && !shown.contains("sesame"), "{shown}");
        let error = MysqlCheck::new("ok", Secret::new("sesame\0")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
    }

    /// Settings out of range are refused, with the range.
    #[test]
    fn settings_have_ranges() {
        let check = MysqlCheck::default;
        let statement = |sql: String| MysqlAsk::Statement { sql, expect: None };
        let table = [
            (
                MysqlCheck::new("u".repeat(513), Secret::default()),
                "user must have 0 to 512 bytes and no zero byte; it has 513",
            ),
            (MysqlCheck::new("a\0b", Secret::default()), "user must have"),
            (MysqlCheck::new("a", Secret::new("p".repeat(214))), "password must have 0 to 213 bytes"),
            (check().in_database("d".repeat(257)), "database must have 0 to 256 bytes"),
            (check().asking(statement(" ".into())), "the statement is empty"),
            (check().asking(statement("s".repeat(8193))), "the statement must have 0 to 8192 bytes"),
            (MysqlCheck::nacos("a", Secret::default(), ""), "the statement is empty"),
        ];
        for (result, words) in table {
            let error = result.expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(check().in_database("").unwrap().database, None);
    }

    /// Nacos' command is the primary check only letter by letter.
    #[test]
    fn nacos_commands_are_read_as_nacos_does() {
        let ask = |cmd| MysqlCheck::nacos("u", Secret::new("p"), cmd).unwrap().ask;
        assert_eq!(ask("show global variables where variable_name='read_only'"), MysqlAsk::IsPrimary);
        for cmd in ["select 1", "SHOW global variables where variable_name='read_only'"] {
            assert_eq!(ask(cmd), MysqlAsk::Statement { sql: cmd.into(), expect: None });
        }
    }
}
