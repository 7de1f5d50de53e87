"""The commands for people and keys. They work on the database itself, whether the server runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rallychat.cli.options import DatabaseUrl, DataDir, Json, settings_from
from rallychat.cli.running import run

users_app = typer.Typer(help="Who may log in.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys: what programs prove with whose they are.", no_args_is_help=True)

UserName = Annotated[str, typer.Argument(metavar="NAME", help="The name they log in with.")]
Sure = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Admin = Annotated[bool, typer.Option("--admin", help="They manage people, keys and models.")]


@users_app.command("add")
def users_add(
    name: UserName,
    admin: Admin = False,
    email: Annotated[str | None, typer.Option(help="Their address, for you to know.")] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="What was written without login becomes theirs.")
    ] = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an account. The password is asked for, or read from standard input."""
    from rallychat.cli.people import add_user

    run(
        add_user(
            settings_from(data_dir=data_dir, database_url=database_url),
            name,
            admin=admin,
            email=email,
            adopt=adopt,
        )
    )


@users_app.command("list")
def users_list(data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """List the accounts."""
    from rallychat.cli.people import list_users

    run(list_users(settings_from(data_dir=data_dir, database_url=database_url), as_json=as_json))


@users_app.command("invite")
def users_invite(
    admin: Admin = False,
    note: Annotated[str, typer.Option(help="Whom it is for, for you to know.")] = "",
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days until it expires.")] = 7,
    url: Annotated[
        str | None, typer.Option(help="Where people reach this server.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Print a link that makes one account, with a name and password of its user's own choice."""
    from rallychat.cli.people import invite_user

    run(
        invite_user(
            settings_from(data_dir=data_dir, database_url=database_url),
            admin=admin,
            note=note,
            days=days,
            url=url,
        )
    )


@users_app.command("invites")
def users_invites(data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """List the invitations that can still be used. Their links are nowhere but where they were printed."""
    from rallychat.cli.people import list_invites

    run(list_invites(settings_from(data_dir=data_dir, database_url=database_url), as_json=as_json))


@users_app.command("withdraw")
def users_withdraw(
    invite: Annotated[str, typer.Argument(metavar="INVITATION", help="Its id, as the list shows it.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take an invitation back: its link makes no account any more."""
    from rallychat.cli.people import withdraw_invite

    run(withdraw_invite(settings_from(data_dir=data_dir, database_url=database_url), invite))


@users_app.command("sessions")
def users_sessions(
    name: UserName, data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: Json = False
) -> None:
    """List where somebody is logged in, the newest first."""
    from rallychat.cli.people import list_sessions

    run(list_sessions(settings_from(data_dir=data_dir, database_url=database_url), name, as_json=as_json))


@users_app.command("logout")
def users_logout(
    name: UserName,
    session: Annotated[
        str | None,
        typer.Argument(metavar="SESSION", help="Its id, as the list shows it (all).", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Log somebody out everywhere, or end one session. Their keys stay good."""
    from rallychat.cli.people import log_out

    run(log_out(settings_from(data_dir=data_dir, database_url=database_url), name, session))


@users_app.command("passwd")
def users_passwd(name: UserName, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Set another password; the account is logged out everywhere."""
    from rallychat.cli.people import set_password

    run(set_password(settings_from(data_dir=data_dir, database_url=database_url), name))


@users_app.command("role")
def users_role(
    name: UserName,
    role: Annotated[str, typer.Argument(help="admin or member.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make somebody an admin, or a member."""
    from rallychat.cli.people import set_role

    run(set_role(settings_from(data_dir=data_dir, database_url=database_url), name, role))


@users_app.command("limit")
def users_limit(
    name: UserName,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Answers at the same time.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens a minute.")] = None,
    stored: Annotated[int | None, typer.Option(min=0, help="Bytes stored.")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set what an account may take. What is not given is not limited."""
    from rallychat.cli.people import set_limits

    run(
        set_limits(
            settings_from(data_dir=data_dir, database_url=database_url),
            name,
            concurrent=concurrent,
            requests=requests,
            tokens=tokens,
            stored=stored,
        )
    )


@users_app.command("disable")
def users_disable(name: UserName, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Keep somebody out at once, by session and by key. What is theirs stays."""
    from rallychat.cli.people import set_disabled

    run(set_disabled(settings_from(data_dir=data_dir, database_url=database_url), name, disabled=True))


@users_app.command("enable")
def users_enable(name: UserName, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Let a disabled account in again."""
    from rallychat.cli.people import set_disabled

    run(set_disabled(settings_from(data_dir=data_dir, database_url=database_url), name, disabled=False))


@users_app.command("export")
def users_export(
    name: UserName,
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The file to write.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write everything of a user into a ZIP file: for whoever asks for their own."""
    from rallychat.cli.people import export_user

    run(export_user(settings_from(data_dir=data_dir, database_url=database_url), name, file.expanduser()))


@users_app.command("remove")
def users_remove(
    name: UserName, yes: Sure = False, data_dir: DataDir = None, database_url: DatabaseUrl = None
) -> None:
    """Delete an account with everything of its user's, for good."""
    from rallychat.cli.people import remove_user

    run(remove_user(settings_from(data_dir=data_dir, database_url=database_url), name, sure=yes))


@users_app.command("audit")
def users_audit(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest.")] = 50,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Show what was done with people, keys and models, the newest first."""
    from rallychat.cli.people import audit

    run(audit(settings_from(data_dir=data_dir, database_url=database_url), limit=limit, as_json=as_json))


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    user: Annotated[
        str | None,
        typer.Option(help="Whose it is (whoever uses RallyChat without login).", show_default=False),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="chat, files, batches, conversations or admin; can be repeated (all but admin).",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it expires (never).", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Print a new key. It is shown this once."""
    from rallychat.cli.people import create_key

    run(
        create_key(
            settings_from(data_dir=data_dir, database_url=database_url),
            name,
            user=user,
            scopes=scope,
            days=days,
        )
    )


@keys_app.command("list")
def keys_list(
    user: Annotated[str | None, typer.Option(help="Only theirs.", show_default=False)] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """List the keys by their beginning."""
    from rallychat.cli.people import list_keys

    run(list_keys(settings_from(data_dir=data_dir, database_url=database_url), user=user, as_json=as_json))


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id or its beginning, as the list shows it.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key useless for good."""
    from rallychat.cli.people import revoke_key

    run(revoke_key(settings_from(data_dir=data_dir, database_url=database_url), key))
