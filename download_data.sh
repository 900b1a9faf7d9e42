#!/usr/bin/env bash
# Fetch the Visual Decathlon, check it and unpack it. It may be stopped and run again at any time.
# A folder gets its final name by a rename, once it is complete: a folder that is there is done.
# Written for Linux and for macOS, whose bash is 3.2.

set -euo pipefail

usage() {
  cat <<'USAGE'
usage: ./download_data.sh [--keep] [DATA]

Fetch the Visual Decathlon (devkit 24 MB, images 406 MB), check it and unpack it to
DATA/decathlon-1.0. DATA is ./data unless given. The script may be stopped and run again at any
time: a broken download is resumed, and what is in place is neither fetched nor unpacked again.

  --keep      keep the archives in DATA/downloads (otherwise they are deleted once unpacked)
  -h, --help  print this text

imagenet12 asks for a login: put decathlon-1.0-data-imagenet.tar into DATA/downloads or DATA, and
it is checked and unpacked too, and never deleted. Without a network, put the other two archives
into DATA/downloads as well.

environment:
  DECATHLON_URL         another address to fetch the two archives from
  DECATHLON_SHA256SUMS  a file as sha256sum writes it: sums to expect in place of the official ones
USAGE
}

die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-1}"
}

devkit=decathlon-1.0-devkit.tar.gz
images=decathlon-1.0-data.tar.gz
imagenet=decathlon-1.0-data-imagenet.tar
targets='aircraft cifar100 daimlerpedcls dtd gtsrb omniglot svhn ucf101 vgg-flowers'
sums="\
f86d9e128678434ff2a3a374f00eb3e2ec2267e15e53ddae5f19ff19378b5ff7  $devkit
8eca928bda025d855c91a78db45b3b18bc322efd7b1462a041e62c27b3c83c25  $images
93caac18a907266f917136849c1db7bbf88dd595120af1a8eea7177138962e4a  $imagenet"

sha256_of() {
  if command -v sha256sum >/dev/null; then sha256sum <"$1"; else shasum -a 256 <"$1"; fi |
    cut -d ' ' -f 1
}

size_of() { echo $(($(wc -c <"$1"))); } # macOS' wc pads with spaces

in_place() { [ -d "$1" ] && [ -n "$(ls -A "$1")" ]; }

# Die unless $2, the SHA-256 found for archive $1, is $3.
compare_sums() {
  [ "$2" = "$3" ] || die "$1 has sha256 $2, expected $3; fetch it again, from another address \
(DECATHLON_URL), or name a file with the sums of other archives (DECATHLON_SHA256SUMS)"
}

# Fetch archive $1 unless it is there, and check that its SHA-256 is $2. A broken download is
# resumed; three attempts in a row without a new byte end it.
fetch() {
  local part=$1.part from=$url/${1##*/} bar=--silent failures=0 size status code found
  if [ -f "$1" ]; then # kept, or put there by hand
    compare_sums "$1" "$(sha256_of "$1")" "$2"
    return
  fi
  [ ! -t 2 ] || bar=--progress-bar
  : >>"$part"
  until [ "$(sha256_of "$part")" = "$2" ]; do
    [ $failures -lt 3 ] || die "$from could not be fetched; check the address, the network and \
the free space, then run this again: it resumes"
    size=$(size_of "$part") status=0
    echo "fetching $from (from byte $size)"
    code=$(curl $bar --show-error --fail --location --continue-at - --output "$part" \
      --connect-timeout 30 --speed-limit 100 --speed-time 60 --write-out '%{http_code}' \
      "$from") || status=$?
    case "$status $code" in
      "0 "*)
        found=$(sha256_of "$part")
        [ "$found" = "$2" ] || : >"$part" # if it went on from the start of another archive: anew
        [ "$size" != 0 ] || compare_sums "$from" "$found" "$2"
        ;;
      "22 416" | "33 "*) : >"$part" ;; # longer than the archive, or no server that can resume
    esac
    if [ "$(size_of "$part")" -gt "$size" ]; then
      failures=0
    else
      failures=$((failures + 1))
      sleep $failures
    fi
  done
  mv "$part" "$1"
}

# unpack ARCHIVE PLACE FOLDER...: these folders of the archive, or of FOLDER.tar in it, go to PLACE.
unpack() {
  local archive=$1 place=$2 work=$2/.unpacking folder new
  echo "unpacking $archive"
  # tarfile's filter "data" (PEP 706) refuses what would be written outside, links that lead there,
  # and devices; tar programs differ in this.
  python3 -I - "$@" <<'PYTHON'
import signal, sys, tarfile, zlib
from pathlib import Path

archive, place, *folders = sys.argv[1:]
work = Path(place, ".unpacking")
signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
try:
    for path in (Path(archive), *(work / f"{folder}.tar" for folder in folders)):
        if path.exists():
            with tarfile.open(path) as tar:
                while (entry := tar.next()) is not None:
                    tar.extract(entry, work, filter="data")
                    tar.members.clear()  # tarfile remembers all: a gigabyte for imagenet12
except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError, LookupError, ArithmeticError,
        MemoryError, RecursionError) as error:
    reason = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
    sys.exit(f"error: {path} could not be unpacked ({reason[:200]}); check the free space, or "
             "fetch the archive again")
PYTHON
  shift 2
  for folder; do
    new=$place/${folder##*/}
    if in_place "$new"; then continue; fi
    in_place "$work/$folder" || die "$archive has no files for $folder; fetch the official archive"
    rmdir "$new" 2>/dev/null || true # an empty folder may be there
    [ ! -e "$new" ] || die "$new is in the way; move it away and run this again"
    mv "$work/$folder" "$place/"
  done
}

# ---- from arguments to data ----------------------------------------------------------------------

keep=no data=''
for argument; do
  case $argument in
    -h | --help) usage && exit ;;
    --keep) keep=yes ;;
    -*) die "unknown option $argument; see ./download_data.sh --help" 2 ;;
    *)
      [ -n "$argument" ] && [ -z "$data" ] || die "expected one folder, such as ./data" 2
      data=$argument
      ;;
  esac
done
data=${data:-./data}
data=${data%/}
root=$data/decathlon-1.0 downloads=$data/downloads
url=${DECATHLON_URL:-http://www.robots.ox.ac.uk/~vgg/share}
url=${url%/}

command -v curl >/dev/null || die 'found no curl; install it'
[ -z "${DECATHLON_SHA256SUMS:-}" ] || sums=$(cat "$DECATHLON_SHA256SUMS" 2>/dev/null) ||
  die "DECATHLON_SHA256SUMS: $DECATHLON_SHA256SUMS cannot be read; correct the path"

needed='' by_hand=$downloads/$imagenet
[ -f "$by_hand" ] || by_hand=$data/$imagenet
in_place "$root/annotations" || needed=$devkit
for task in $targets; do
  in_place "$root/data/$task" || { needed="$needed $images" && break; }
done
[ ! -f "$by_hand" ] || in_place "$root/data/imagenet12" || needed="$needed $imagenet"

if [ -n "$needed" ]; then
  { mkdir -p "$downloads" "$root/data" && exec 9>>"$downloads/.lock"; } 2>/dev/null ||
    die "$data cannot be written to; check its permissions, or name another folder"
  # The lock is free when this process and those it started have ended, however they end.
  status=0
  python3 -I -c '
import fcntl, sys, tarfile, zlib
tarfile.data_filter
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(75)
except OSError:  # some network file systems have no locks
    pass' 2>/dev/null || status=$?
  [ $status != 75 ] || die "another run is at work in $data; wait until it has ended"
  [ $status = 0 ] ||
    die 'found no python3 with a safe tarfile; install Python 3.10.12, 3.11.4, 3.12 or later'
  rm -rf "$root/.unpacking" "$root/data/.unpacking" # what a killed run has left
  trap 'rm -rf "$root/.unpacking" "$root/data/.unpacking"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
fi
for name in $needed; do
  file=$downloads/$name
  [ "$name" != "$imagenet" ] || file=$by_hand
  sum=$(printf '%s\n' "$sums" | tr -d '\r' | # sha256sum marks binary mode with an asterisk
    awk -v name="$name" '{ sub(/^[*]?([.][/])?/, "", $2) } $2 == name { print tolower($1) }')
  [ -n "$sum" ] || die "DECATHLON_SHA256SUMS: $DECATHLON_SHA256SUMS has no sum of $name; add it"
  fetch "$file" "$sum"
  case $name in
    "$devkit") unpack "$file" "$root" decathlon-1.0/annotations ;;
    "$images") unpack "$file" "$root/data" $targets ;;
    "$imagenet") unpack "$file" "$root/data" imagenet12 ;;
  esac
  [ $keep = yes ] || [ "$name" = "$imagenet" ] || rm -f "$file" # imagenet12's is the user's
done

echo "$root: the nine target tasks are in place"
in_place "$root/data/imagenet12" || cat <<HINT

imagenet12 is not here. Only training the source network and submitting answers for imagenet12 need
it; the nine targets are trained from pretrained weights. It asks for an ImageNet login: fetch
  http://www.image-net.org/image/decathlon/$imagenet
put it into $downloads and run this again.
HINT
[ -f "$(dirname "$0")/resnet26_pretrained.t7" ] || cat <<HINT

The pretrained weights, resnet26_pretrained.t7, are not here. Fetch
  https://drive.google.com/open?id=1fiFyfb9f3PqVI4q26tp4bP9yNOFXS1KG
and put the file beside this script, or name it with --pretrained FILE.
HINT
