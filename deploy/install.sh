#!/usr/bin/env bash
# Install the inspection station on this device, or remove it. Run it as root.
#
# Each installation is a release: a Python environment of its own below PREFIX/releases. The link PREFIX/current names the
# one that runs, and it is moved last, in one step. So a failure at any point leaves the old release at work, and running
# the script again is safe. The station's folder (/var/lib/flowedge) and its secrets (/etc/flowedge) are never overwritten.
set -euo pipefail

readonly PREFIX=/opt/flowedge CONFIG=/etc/flowedge STATE=/var/lib/flowedge
readonly ACCOUNT=flowedge UNIT=flowedge-station.service UNITS=/etc/systemd/system COMMAND=/usr/local/bin/flowedge
readonly SPACE_MB=2000
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here

usage() {
    cat <<USAGE
Usage: install.sh [OPTIONS]              install FlowEdge's inspection station, or bring it up to date
       install.sh --uninstall [--purge]  remove it. Only --purge removes $STATE and $CONFIG too

  --wheels DIR     install from this folder of wheels alone, without any network. It has FlowEdge's wheel as well
  --extras LIST    optional packages, such as station,ort,openvino. The default fits this machine
  --python FILE    the interpreter, Python 3.10 or newer. The default is python3
  --uid NUMBER     the number of the new user flowedge, where folders are shared with a container
  --no-service     install no systemd unit, for a container
  -h, --help       print this help

Without --wheels, the checkout that this script lies in is installed, and other packages come from the package index.
USAGE
}

refuse() {
    printf 'install.sh: %s\n' "$@" >&2
    exit 2
}

tell() { printf '%s\n' "$*"; }

wheels='' extras='' python=python3 uid='' service=yes uninstall='' purge=''
while [ $# -gt 0 ]; do
    case $1 in
        --wheels | --extras | --python | --uid)
            [ $# -ge 2 ] || refuse "The option $1 needs a value."
            declare "${1#--}=$2"
            shift
            ;;
        --no-service) service='' ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        -h | --help) usage && exit 0 ;;
        *) refuse "There is no option $1. install.sh --help lists the options." ;;
    esac
    shift
done
[ -z "$purge" ] || [ -n "$uninstall" ] || refuse 'The option --purge goes with --uninstall.'
[ "$(id -u)" = 0 ] || refuse 'This script makes a user, folders and a service, so it needs root: sudo deploy/install.sh'

has_systemd() { command -v systemctl > /dev/null; }
# In a container or while an image is built, systemd is installed but does not run.
systemd_runs() { [ -d /run/systemd/system ]; }

remove() {
    if has_systemd && [ -e "$UNITS/$UNIT" ]; then
        ! systemd_runs || systemctl stop "$UNIT"
        systemctl --quiet disable "$UNIT"
        rm -rf "${UNITS:?}/$UNIT" "$UNITS/$UNIT.d"
        ! systemd_runs || systemctl daemon-reload
    fi
    [ "$(readlink "$COMMAND")" != "$PREFIX/current/bin/flowedge" ] || rm -f "$COMMAND"
    rm -rf "$PREFIX"
    if [ -z "$purge" ]; then
        tell "FlowEdge is removed. Its settings, bundles, journal and pictures stay in $STATE, its secrets in $CONFIG."
        return
    fi
    rm -rf "$CONFIG" "$STATE"
    ! getent passwd "$ACCOUNT" > /dev/null || userdel "$ACCOUNT"
    tell 'FlowEdge is removed, with its settings, bundles, journal and pictures.'
}

if [ -n "$uninstall" ]; then
    remove
    exit 0
fi

# --- Look at everything before anything is changed.

[ "$(uname -s)" = Linux ] || refuse "FlowEdge runs on Linux, and this is $(uname -s)."
command -v "$python" > /dev/null || refuse "There is no $python. Install Python 3.10 or newer, or name it with --python."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    refuse "$python is Python $version, and FlowEdge needs 3.10 or newer. JetPack 6 and Debian 12 have it; --python names another one."
"$python" -c 'import venv, ensurepip' 2> /dev/null ||
    refuse "Python $version of this machine cannot make environments: apt-get install python3-venv"
[ -z "$service" ] || has_systemd ||
    refuse 'This machine has no systemd, which starts and watches the station. In a container, add --no-service.'

place=$PREFIX
until [ -d "$place" ]; do place=$(dirname "$place"); done
free_mb=$(df --output=avail -m "$place" | tail -n 1)
[ "$free_mb" -ge "$SPACE_MB" ] ||
    refuse "$PREFIX has $free_mb MB of free space, and an installation needs up to $SPACE_MB MB. Old releases are in $PREFIX/releases."

[ ! -e "$COMMAND" ] && [ ! -L "$COMMAND" ] || [ "$(readlink "$COMMAND")" = "$PREFIX/current/bin/flowedge" ] ||
    refuse "$COMMAND exists and is not from this script. Remove it first."

is_jetson() { [ -e /etc/nv_tegra_release ]; }
# Linux for Tegra 38 (JetPack 7) and driver 580 are the first ones with CUDA 13.
cuda_of_machine() {
    local release first
    if is_jetson; then
        release=$(sed -n 's/^# R\([0-9]*\) .*/\1/p' /etc/nv_tegra_release) first=38
    else
        release=$(sed -n 's/.*Module.* \([0-9]*\)\.[0-9][0-9.]* .*/\1/p' /proc/driver/nvidia/version) first=580
    fi
    if [ "${release:-0}" -ge "$first" ]; then tell 13; else tell 12; fi
}
extras_of_machine() {
    # JetPack brings TensorRT, for which only the bindings of CUDA are installed.
    if is_jetson || [ -e /proc/driver/nvidia/version ]; then
        tell "station,ort,tensorrt-cu$(cuda_of_machine)"
    elif [ "$(uname -m)" = x86_64 ]; then
        tell station,ort,openvino
    else
        tell station,ort
    fi
}
extras=${extras:-$(extras_of_machine)}
[[ $extras =~ ^[a-z0-9,-]+$ ]] || refuse "--extras is $extras. It is a list of names with commas, such as station,ort,openvino."

[[ $uid =~ ^[0-9]*$ ]] || refuse "--uid is $uid, and a user's number has digits alone."
[ -z "$uid" ] || ! getent passwd "$ACCOUNT" > /dev/null || [ "$(id -u "$ACCOUNT")" = "$uid" ] ||
    refuse "The user $ACCOUNT exists with the number $(id -u "$ACCOUNT"), and --uid is $uid."

requirement=''
pip_options=()
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || refuse "There is no folder $wheels."
    wheels=$(cd "$wheels" && pwd)
    shopt -s nullglob
    own=("$wheels"/flowedge-*.whl)
    shopt -u nullglob
    [ ${#own[@]} -eq 1 ] ||
        refuse "$wheels has ${#own[@]} wheels of FlowEdge, and one is needed. It is made by: pip wheel '.[$extras]' -w $wheels"
    requirement="flowedge[$extras] @ file://${own[0]}"
    pip_options=(--no-index --find-links "$wheels")
else
    [ -e "$here/../pyproject.toml" ] || refuse 'This script lies in no checkout of FlowEdge. Name a folder of wheels with --wheels.'
    requirement="flowedge[$extras] @ file://$(cd "$here/.." && pwd)"
fi

# --- The user and the folders.

if ! getent passwd "$ACCOUNT" > /dev/null; then
    useradd ${uid:+--uid "$uid"} --system --user-group --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin "$ACCOUNT"
    tell "made the user $ACCOUNT"
fi
# Cameras belong to the group video, and a Jetson's GPU to video and render.
for group in video render; do
    ! getent group "$group" > /dev/null || usermod --append --groups "$group" "$ACCOUNT"
done
# Secrets are read by systemd alone.
install -d -m 0700 "$CONFIG"
install -d -m 0750 -o "$ACCOUNT" -g "$ACCOUNT" "$STATE"

# --- The release.

facts=$(
    printf '%s\n' "$extras" "$(command -v "$python")" "$version"
    [ -z "$wheels" ] || (cd "$wheels" && sha256sum -- *.whl)
)
current=$(readlink "$PREFIX/current" || true)
if [ -n "$wheels" ] && [ -n "$current" ] && [ "$(cat "$current/installed-from" 2> /dev/null)" = "$facts" ]; then
    tell "$current was installed from the same wheels, so it stays"
    release=$current
else
    mkdir -p "$PREFIX/releases"
    release=$(mktemp -d "$PREFIX/releases/$(date -u +%Y%m%d-%H%M%S)-XXXX")
    trap 'rm -rf "$release"' EXIT
    chmod 0755 "$release"
    # JetPack installs TensorRT's Python package for the system's interpreter alone, and its image has no file of a Jetson.
    venv_options=()
    ! "$python" -c 'import sys, importlib.util; sys.exit(importlib.util.find_spec("tensorrt") is None)' ||
        venv_options=(--system-site-packages)
    tell "installing flowedge[$extras] for Python $version into $release"
    "$python" -m venv "${venv_options[@]}" "$release"
    # Settings of another user's pip, such as an index that needs a password, do not belong here.
    env --unset=PYTHONPATH "$release/bin/python" -m pip install --quiet --no-warn-script-location "${pip_options[@]}" "$requirement" ||
        refuse "pip could not install FlowEdge, see above.${current:+ The release $current is unchanged.}"
    "$release/bin/flowedge" --version > /dev/null || refuse "The new release does not start.${current:+ The release $current is unchanged.}"
    printf '%s\n' "$facts" > "$release/installed-from"
fi

# --- The service, the link, and what is too old.

if [ -n "$service" ]; then
    install -m 0644 "$here/$UNIT" "$UNITS/$UNIT"
    if is_jetson; then
        # A Jetson's GPU is reached by dozens of devices whose names change with each JetPack.
        install -d "$UNITS/$UNIT.d"
        printf '[Service]\nDevicePolicy=auto\n' > "$UNITS/$UNIT.d/jetson.conf"
    fi
fi
ln -sfn "$release" "$PREFIX/current.new"
mv -T "$PREFIX/current.new" "$PREFIX/current"
ln -sfn "$PREFIX/current/bin/flowedge" "$COMMAND"
trap - EXIT
# The release before this one stays, so that a person can go back to it.
find "$PREFIX/releases" -mindepth 1 -maxdepth 1 ! -path "$release" ! -path "${current:-$release}" -exec rm -rf {} +

tell "FlowEdge $("$COMMAND" --version) is installed in $release"
if [ -n "$service" ]; then
    ! systemd_runs || systemctl daemon-reload
    systemctl --quiet enable "$UNIT"
    if systemd_runs && [ -e "$STATE/station.toml" ]; then
        systemctl restart "$UNIT"
        tell "The station runs: systemctl status $UNIT"
        exit 0
    fi
fi
cat <<NEXT
Next:
  cp -r bottle.flowedge $STATE/ && chown -R $ACCOUNT: $STATE/bottle.flowedge
  runuser -u $ACCOUNT -- flowedge station init $STATE/bottle.flowedge -o $STATE/station.toml --source SOURCE
  runuser -u $ACCOUNT -- flowedge station check $STATE/station.toml
NEXT
[ -z "$service" ] || tell "  systemctl start $UNIT"
