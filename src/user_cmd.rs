//! `ringspan user ...`: who may use the registry. Through the running bridge's admin socket; where none runs, on the accounts
//! themselves (in the data folder, or in the cluster's etcd). Whoever may open the data folder may do all of it: that is how
//! a lost password is replaced.
//! Promise: a password is read from stdin or made by chance, never taken from the command line, where others see it.

use crate::cli::{self, ListFormat};
use crate::config::unit::Shown;
use crate::office::{Answer, Request, unix_now};
use crate::{Ending, Failure, admin, bridge_cmd, machine};
use ringspan_registry::access::{Access, Change, Listed, Options, Password, Refused, generate};
use std::fmt::Write as _;
use std::io::Read;
use std::time::Duration;

/// Longest password that is read, and its line's end.
const PASSWORD_READ_MAX: u64 = 1024;

/// Runs the subcommand.
pub(crate) fn run(command: &cli::User) -> Result<Ending, Failure> {
    match command {
        cli::User::Add(args) => {
            let password = match (args.no_password, args.password_stdin) {
                (true, _) => None,
                (false, from_stdin) => Some(password(from_stdin)?),
            };
            let said = password.as_ref().map(|p| p.text.clone());
            let mut grants = args.grants.clone();
            grants.extend(args.admin.then(|| "admin".to_owned()));
            change(&args.whose, Change::Add { user: args.name.clone(), password: said, grants })?;
            eprintln!("user {} is there", args.name);
            show(password);
        }
        cli::User::Passwd(args) => {
            let password = password(args.password_stdin)?;
            change(&args.whose, Change::Password { user: args.name.clone(), password: password.text.clone() })?;
            eprintln!("user {} has another password; who was logged in as him is not any more", args.name);
            show(Some(password));
        }
        cli::User::Remove(args) => {
            change(&args.whose, Change::Remove { user: args.name.clone() })?;
            eprintln!("user {} is gone", args.name);
        }
        cli::User::Grant(args) => {
            change(&args.whose, Change::Grant { to: args.name.clone(), grants: args.grants.clone() })?;
            eprintln!("{}: granted {}", args.name, args.grants.join(" "));
        }
        cli::User::Revoke(args) => {
            change(&args.whose, Change::Revoke { from: args.name.clone(), grants: args.grants.clone() })?;
            eprintln!("{}: revoked {}", args.name, args.grants.join(" "));
        }
        cli::User::Token(args) => {
            let seconds = args.expires.as_secs().max(1);
            let (user, name) = (args.name.clone(), args.label.clone());
            let token = change(&args.whose, Change::Token { user, name, seconds })?;
            let token = token.ok_or_else(|| Failure::Run("the bridge gave no token".into()))?;
            crate::say(&format!("{token}\n"));
            eprintln!(
                "API token {:?} with the rights of {}, for {}. It is a secret and is shown this once.\n  \
                 curl -H \"Authorization: Bearer $TOKEN\" http://127.0.0.1:8848/api/v1/me",
                args.label,
                args.name,
                Shown(Duration::from_secs(seconds))
            );
        }
        cli::User::RevokeToken(args) => {
            change(&args.whose, Change::RevokeToken { id: args.id.clone() })?;
            eprintln!("API token {} opens nothing any more", args.id);
        }
        cli::User::List(args) => match ask(&args.whose, Request::Accounts)? {
            Answer::Accounts(accounts) => match args.format {
                ListFormat::Text => crate::say(&table(&accounts, unix_now())),
                ListFormat::Json => {
                    let text = serde_json::to_string(&accounts).expect("names are JSON");
                    crate::say(&format!("{text}\n"));
                }
            },
            other => return Err(unexpected(other)),
        },
    }
    Ok(Ending::Good)
}

/// A password, and whether its owner has not seen it yet.
struct Chosen {
    text: Password,
    is_new: bool,
}

fn password(from_stdin: bool) -> Result<Chosen, Failure> {
    if !from_stdin {
        return Ok(Chosen { text: Password(generate()), is_new: true });
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().take(PASSWORD_READ_MAX).read_to_string(&mut text);
    read.map_err(|e| Failure::Usage(format!("--password-stdin: {e}")))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok(Chosen { text: Password(text.to_owned()), is_new: false })
}

/// One that was made by chance goes to stdout, alone.
fn show(password: Option<Chosen>) {
    if let Some(Chosen { text: Password(text), is_new: true }) = password {
        eprintln!("Its password, shown this once:");
        crate::say(&format!("{text}\n"));
    }
}

fn change(whose: &cli::Whose, change: Change) -> Result<Option<String>, Failure> {
    match ask(whose, Request::Account(change))? {
        Answer::Account { token } => Ok(token),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> Failure {
    match answer {
        Answer::Wrong(text) => Failure::Usage(text),
        Answer::Failed(text) => Failure::Run(text),
        _ => Failure::Run("the bridge answered something else. Try: the same version of both".into()),
    }
}

/// Asks the bridge, or the accounts themselves.
fn ask(whose: &cli::Whose, request: Request) -> Result<Answer, Failure> {
    let is_new = matches!(request, Request::Account(Change::Add { .. }));
    admin::ask_owner(whose, request, is_new, |config, _lock, request| {
        let options = Options { audit: None, ..bridge_cmd::access::options(config) };
        let access = Access::open(&options).map_err(|e| Failure::Run(e.to_string()))?;
        let answer = machine::runtime()?.block_on(answer(&access, request));
        access.stop();
        Ok(answer)
    })
}

/// Does what is asked of accounts.
pub(crate) async fn answer(access: &Access, request: Request) -> Answer {
    match request {
        Request::Account(change) => match access.change(change).await {
            Ok(token) => Answer::Account { token },
            Err(refused @ (Refused::Wrong(_) | Refused::NotThere(_))) => Answer::Wrong(refused.to_string()),
            Err(refused @ Refused::Failed(_)) => Answer::Failed(refused.to_string()),
        },
        _ => Answer::Accounts(access.list()),
    }
}

fn table(accounts: &[Listed], now: u64) -> String {
    if accounts.is_empty() {
        return "No accounts. Make one: ringspan user add alice --grant public:write\n".into();
    }
    let mut out = String::new();
    let _ = writeln!(out, "{:<24}{:<10}MAY", "USER", "PASSWORD");
    for account in accounts {
        let password = match (account.name.starts_with("role:"), account.has_password) {
            (true, _) => "",
            (false, true) => "yes",
            (false, false) => "none",
        };
        let grants = if account.grants.is_empty() { "nothing".to_owned() } else { account.grants.join(" ") };
        let _ = writeln!(out, "{:<24}{password:<10}{grants}", account.name);
    }
    let tokens: Vec<_> = accounts.iter().flat_map(|a| a.tokens.iter().map(move |t| (a, t))).collect();
    if !tokens.is_empty() {
        let _ = writeln!(out, "\n{:<14}{:<24}{:<24}STATE", "API TOKEN", "NAME", "USER");
    }
    for (account, token) in tokens {
        let state = match (token.expires_ms / 1_000).checked_sub(now) {
            None | Some(0) => "expired".to_owned(),
            Some(left) if left > 2 * 86_400 => format!("good for {}d", left / 86_400),
            Some(left) if left > 7_200 => format!("good for {}h", left / 3_600),
            Some(left) => format!("good for {}", Shown(Duration::from_secs(left))),
        };
        let _ = writeln!(out, "{:<14}{:<24}{:<24}{state}", token.id, token.name, account.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_registry::access::ListedToken;

    /// Users, roles and tokens for people; nobody without rights looks as if he had some.
    #[test]
    fn tables() {
        let token = |name: &str, expires_ms| ListedToken { id: "0123456789ab".into(), name: name.into(), expires_ms };
        let accounts = [
            Listed {
                name: "alice".into(),
                grants: vec!["admin".into()],
                has_password: true,
                tokens: vec![token("ci", 10_000), token("old", 1_000)],
            },
            Listed { name: "bob".into(), grants: vec![], has_password: false, tokens: vec![] },
            Listed { name: "role:ops".into(), grants: vec!["dev:write".into()], has_password: false, tokens: vec![] },
        ];
        let text = table(&accounts, 5);
        let lines: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let want = [
            "USER PASSWORD MAY",
            "alice yes admin",
            "bob none nothing",
            "role:ops dev:write",
            "",
            "API TOKEN NAME USER STATE",
            "0123456789ab ci alice good for 5s",
            "0123456789ab old alice expired",
        ];
        assert_eq!(lines, want);
        assert!(table(&[], 0).contains("ringspan user add"));
    }
}
