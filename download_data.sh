#!/usr/bin/env bash
# Fetch the Visual Decathlon, check it and unpack it. It may be stopped and run again at any time.
#
# What is where in DATA, the folder that the user names:
#
#     downloads/NAME.part                 still arriving, or not yet checked
#     downloads/NAME                      a whole archive; its sha256 was right
#     decathlon-1.0/annotations/          from the devkit
#     decathlon-1.0/data/<task>/          from the data archive, which holds one <task>.tar per task
#     decathlon-1.0/{,data/}.unpacking/   half-unpacked; the next run removes it
#
# A folder gets its final name by one rename, once it is whole, and with it a file .unpacked_from
# that holds the archive's sha256. That file is how a later run knows that nothing is left to do.
# The same file in decathlon-1.0/data/ names all tasks of the data archive; it is written last.
#
# Written for Linux and for macOS, whose bash is 3.2: no associative arrays, no ${name,,}.

set -euo pipefail
trap '' XFSZ # a file beyond `ulimit -f` is then an error in writing like a full disk, not a death

usage() {
  cat <<'USAGE'
usage: ./download_data.sh [--keep] [DATA]

Fetch the Visual Decathlon (devkit 24 MB, images 406 MB), check it and unpack it to
DATA/decathlon-1.0. DATA is ./data unless given. It may be stopped and run again at any time: a
broken download is resumed, and what is in place already is neither fetched nor unpacked again.

  --keep      keep the archives in DATA/downloads (otherwise they are deleted once unpacked)
  -h, --help  print this text

imagenet12 asks for a login: put decathlon-1.0-data-imagenet.tar into DATA/downloads or DATA, and
it is checked and unpacked too. It is never deleted. The other archives may be put into
DATA/downloads by hand as well, where there is no network.

environment:
  DECATHLON_URL         another address to fetch the two archives from
  DECATHLON_SHA256SUMS  a file, as sha256sum writes it, with the sums to expect instead of the
                        official ones
USAGE
}

die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-1}"
}

# ---- what to fetch -------------------------------------------------------------------------------

devkit=decathlon-1.0-devkit.tar.gz
images=decathlon-1.0-data.tar.gz
imagenet=decathlon-1.0-data-imagenet.tar

official_url=http://www.robots.ox.ac.uk/~vgg/share
official_sums="\
f86d9e128678434ff2a3a374f00eb3e2ec2267e15e53ddae5f19ff19378b5ff7  $devkit
8eca928bda025d855c91a78db45b3b18bc322efd7b1462a041e62c27b3c83c25  $images
93caac18a907266f917136849c1db7bbf88dd595120af1a8eea7177138962e4a  $imagenet"
imagenet_url=http://www.image-net.org/image/decathlon/$imagenet
weights=resnet26_pretrained.t7
weights_url='https://drive.google.com/open?id=1fiFyfb9f3PqVI4q26tp4bP9yNOFXS1KG'

# The sha256 that archive $1 must have; nothing where DECATHLON_SHA256SUMS does not name it.
expected_sum() {
  local sum name
  while read -r sum name; do
    name=${name%$'\r'} name=${name#\*} # sha256sum marks binary mode by an asterisk
    if [ "${name#./}" = "$1" ]; then
      printf '%s\n' "$sum" | tr 'A-F' 'a-f'
      return
    fi
  done <<<"$sums"
}

# ---- checking ------------------------------------------------------------------------------------

sha256_of() {
  local sum
  if command -v sha256sum >/dev/null; then
    sum=$(sha256sum <"$1")
  else
    sum=$(shasum -a 256 <"$1")
  fi
  printf '%s\n' "${sum%% *}"
}

size_of() {
  if [ -f "$1" ]; then echo $(($(wc -c <"$1"))); else echo 0; fi
}

# Is folder $1 in place, unpacked from the archive with sum $2? A folder without our marker is the
# user's own and counts as in place.
in_place() {
  local found=''
  [ -d "$1" ] && [ -n "$(ls -A "$1")" ] || return 1
  [ -f "$1/.unpacked_from" ] || return 0
  read -r found _ <"$1/.unpacked_from" || true
  [ "$found" = "$2" ]
}

images_in_place() {
  local found='' task
  [ -f "$root/data/.unpacked_from" ] || return 1
  {
    read -r found _ || true
    [ "$found" = "$images_sum" ] || return 1
    while read -r task; do
      in_place "$root/data/$task" "$images_sum" || return 1
    done
  } <"$root/data/.unpacked_from"
}

# The imagenet12 archive, if the user has put it somewhere.
imagenet_archive() {
  local folder
  for folder in "$downloads" "$data"; do
    if [ -f "$folder/$imagenet" ]; then
      printf '%s\n' "$folder/$imagenet"
      return
    fi
  done
}

all_in_place() {
  in_place "$root/annotations" "$devkit_sum" && images_in_place &&
    { [ -z "$(imagenet_archive)" ] || in_place "$root/data/imagenet12" "$imagenet_sum"; } &&
    [ ! -e "$root/.unpacking" ] && [ ! -e "$root/data/.unpacking" ]
}

# ---- fetching ------------------------------------------------------------------------------------

# One attempt to bring $part on from where it stops. Returns 0: the server says that it is whole;
# 1: another attempt may help, and `reason` tells why; ends the script where none can.
attempt() {
  local url=$1 part=$2 status=0 code=''
  if command -v curl >/dev/null; then
    # Without a byte to build on, no range is asked for. A minute of near silence counts as broken.
    set -- --fail --location --connect-timeout 30 --speed-limit 100 --speed-time 60 \
      --output "$part" --write-out '%{http_code}'
    if [ -s "$part" ]; then set -- "$@" --continue-at -; fi
    if [ -t 2 ]; then set -- "$@" --progress-bar; else set -- "$@" --silent; fi
    code=$(curl "$@" "$url") || status=$?
    reason="curl ended with status $status"
    case $status in
      0) return 0 ;;
      1 | 3) die "DECATHLON_URL is not an address that can be fetched from: $url; correct it" ;;
      5 | 6) reason="the server's name is unknown, or there is no network" ;;
      7) reason='no connection to the server' ;;
      18 | 52 | 56) reason='the connection broke off' ;;
      22) reason="the server answered $code" ;;
      23) cannot_write "$part" ;;
      28) reason='the server fell silent' ;;
      35 | 51 | 60 | 77) reason='no secure connection could be made (certificates, clock?)' ;;
      33) # It does not serve ranges.
        reason='the server cannot resume a download, which starts from zero again'
        rm -f "$part"
        ;;
    esac
    case $code in
      416) rm -f "$part" ;; # more bytes than the server has
      408 | 429) ;;
      4??) [ "$status" != 22 ] || die "$url: the server answered $code; check the address, or set DECATHLON_URL to one that has this file" ;;
    esac
  else
    set -- --tries=1 --timeout=60 --continue --output-document="$part"
    if [ ! -t 2 ]; then set -- "$@" --quiet; fi
    wget "$@" "$url" || status=$?
    case $status in
      0) return 0 ;;
      3) cannot_write "$part" ;;
      4) reason='no connection, or it broke off' ;;
      8) reason='the server answered with an error, such as 404' ;;
      *) # Old ones refuse to go on without ranges; they say no more than this.
        reason="wget ended with status $status"
        rm -f "$part"
        ;;
    esac
  fi
  return 1
}

cannot_write() {
  die "$1 could not be written; free some space (df -h), or name another folder"
}

# Bring $part to its end; five attempts in a row without a new byte are the limit.
fetch() {
  local url=$1 part=$2 farthest size failures=0
  farthest=$(size_of "$part")
  if [ "$farthest" = 0 ]; then
    echo "fetching $url"
  else
    echo "fetching $url (resuming after $farthest bytes)"
  fi
  until attempt "$url" "$part"; do
    size=$(size_of "$part")
    if [ "$size" -gt "$farthest" ]; then
      farthest=$size failures=0
    else
      failures=$((failures + 1))
    fi
    [ "$failures" -lt 5 ] ||
      die "$url could not be fetched: $reason; check the network and run this again, it resumes"
    echo "  $reason; trying again (after $size bytes)"
    sleep $((1 << failures))
  done
  [ -f "$part" ] || : >"$part" # curl makes no file of an empty answer
}

# See to it that $downloads/NAME is there, whole and checked.
obtain() {
  local name=$1 expected=$2 found round
  local file=$downloads/$name
  local part=$file.part
  if [ -f "$file" ]; then
    found=$(sha256_of "$file")
    [ "$found" != "$expected" ] || return 0
    mv -f "$file" "$file.other"
    echo "$file is another archive (its sha256 is $found, expected $expected); set aside as $name.other"
  fi
  if [ -s "$part" ] && [ "$(sha256_of "$part")" = "$expected" ]; then
    mv "$part" "$file" # a run was stopped just before this line
    return
  fi
  for round in first second; do
    fetch "$url/$name" "$part"
    found=$(sha256_of "$part")
    if [ "$found" = "$expected" ]; then
      mv "$part" "$file"
      return
    fi
    rm -f "$part" # or it would be resumed for ever
    [ "$round" = second ] || echo "  its sha256 is $found, expected $expected; fetching it anew"
  done
  die "$url/$name has sha256 $found, expected $expected, twice; try another address (DECATHLON_URL), and for other archives than the official ones name a file with their sums (DECATHLON_SHA256SUMS)"
}

# ---- unpacking -----------------------------------------------------------------------------------

# unpack KIND ARCHIVE SHA256 ROOT, where KIND is devkit, images or imagenet. In Python, because tar
# programs differ in what they let an archive write outside the folder it is unpacked to.
unpack() {
  python3 -I - "$@" <<'PYTHON'
import gzip
import os
import re
import shutil
import signal
import sys
import tarfile
import zlib
from pathlib import Path

# What an archive raises that is damaged, or made to be; ValueError: numbers and names that are none.
DAMAGED = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError,
           MemoryError)
LONGEST_NAME = 200  # characters; the official ones have 45
KIND, ARCHIVE, SHA256, ROOT = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
DATA = ROOT / "data"
MARKER = ".unpacked_from"


def refuse(found):
    sys.exit(f"error: {ARCHIVE}: {found}; nothing of it was unpacked, fetch the official archive")


def entries(tar):
    """(entry, its path in parts) of a tar, in order; an entry that could reach outside ends it all."""
    while (entry := tar.next()) is not None:
        tar.members.clear()  # tarfile remembers every entry: gigabytes for imagenet12
        parts = entry.name.split("/")
        if entry.name.startswith("/") or ".." in parts:
            refuse(f"found entry {entry.name!a:.80}, expected only paths inside the archive's own folder")
        if len(entry.name) > LONGEST_NAME or not entry.name.isprintable():
            refuse(f"found entry {entry.name!a:.80}, expected only names that can be printed, and short ones")
        if entry.issparse() or not (entry.isreg() or entry.isdir()):  # sparse: of any size at will
            refuse(f"entry {entry.name!a:.80} is a link or a device, expected only files and folders")
        yield entry, [part for part in parts if part not in ("", ".")]


def folders_inside():
    """For each folder to make: the open tar that holds it, its path in there, its final place."""
    with tarfile.open(ARCHIVE) as outer:
        if KIND == "devkit":
            yield outer, ["decathlon-1.0", "annotations"], ROOT / "annotations"
        elif KIND == "imagenet":
            yield outer, ["imagenet12"], DATA / "imagenet12"
        else:
            for entry, parts in entries(outer):
                if entry.isreg() and len(parts) == 1 and re.fullmatch(r"\w[\w.-]*\.tar", parts[0]):
                    task = parts[0][: -len(".tar")]
                    with tarfile.open(fileobj=outer.extractfile(entry), mode="r:") as inner:
                        yield inner, [task], DATA / task


def files_under(tar, inside):
    """(entry, path below `inside`); what else an archive holds is checked and passed over."""
    for entry, parts in entries(tar):
        if parts[: len(inside)] == inside and len(parts) > len(inside):
            yield entry, Path(*parts[len(inside) :])


def write(tar, inside, folder):
    last = None  # images of a class follow each other: one mkdir serves many
    for entry, path in files_under(tar, inside):
        target = folder / path
        if entry.isdir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            if target.parent != last:
                target.parent.mkdir(parents=True, exist_ok=True)
                last = target.parent
            with tar.extractfile(entry) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def origin_of(place):
    """The sum of the archive that `place` came from; None: nothing there; "": the user's own."""
    if not os.path.lexists(place):
        return None
    if not place.is_dir():
        sys.exit(f"error: {place} is a file, expected a folder or nothing; move it away")
    if not any(place.iterdir()):
        return None
    marker = place / MARKER
    return marker.read_text(encoding="utf-8").split(maxsplit=1)[0] if marker.is_file() else ""


def unpack(tar, inside, place):
    """Write to a temporary folder beside `place`, then rename: `place` is never half full."""
    temporary = place.parent / ".unpacking"
    temporary.mkdir(parents=True)
    try:
        new = temporary / "new"
        new.mkdir()
        write(tar, inside, new)
        (new / MARKER).write_text(f"{SHA256}  {ARCHIVE.name}\n", encoding="utf-8")
        if os.path.lexists(place):
            place.rename(temporary / "old")
        new.rename(place)
    finally:
        shutil.rmtree(temporary)


def main():
    for parent in (ROOT, DATA):  # what a killed run has left
        if (parent / ".unpacking").exists():
            shutil.rmtree(parent / ".unpacking")

    places = []
    for tar, inside, place in folders_inside():  # the whole archive, before anything is written
        if not sum(entry.isreg() for entry, _ in files_under(tar, inside)):
            refuse(f"found no files in {'/'.join(inside)}/, expected the official structure")
        places.append(place)
    if not places:
        refuse("found no <task>.tar inside, expected one per task")

    record = DATA / MARKER
    if KIND == "images":
        record.unlink(missing_ok=True)
    for tar, inside, place in folders_inside():
        origin = origin_of(place)
        if origin == SHA256:
            print(f"  {place.name}: in place already", flush=True)
        elif origin == "":
            print(f"  {place.name}: left as it is; move {place} away to have it unpacked",
                  flush=True)
        else:
            note = "" if origin is None else " (instead of the one from another archive)"
            print(f"  {place.name}: unpacking{note}", flush=True)
            unpack(tar, inside, place)
    if KIND == "images":
        draft = DATA / f"{MARKER}.new"
        names = "".join(f"{place.name}\n" for place in places)
        draft.write_text(f"{SHA256}  {ARCHIVE.name}\n{names}", encoding="utf-8")
        draft.replace(record)


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave by way of `finally`
signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
try:
    main()
except KeyboardInterrupt:
    sys.exit(130)
except BrokenPipeError:  # nobody reads on; as for other programs, no reason for a word
    os._exit(141)
except DAMAGED as error:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    sys.exit(f"error: {ARCHIVE} cannot be read as an archive ({reason}); delete it and run this again")
except OSError as error:
    sys.exit(f"error: {error.filename or ROOT}: {error.strerror or error}; "
             "mend that (free some space, or name another folder) and run this again")
PYTHON
}

# Only one run may work in a folder. The lock belongs to this process and to those it starts, and
# ends with the last of them, however they end; the file itself means nothing.
lock() {
  local status=0
  exec 9>>"$downloads/.lock"
  python3 -I -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
except OSError:
    sys.exit(4)' || status=$?
  case $status in
    0) echo $$ >"$downloads/.lock" ;;
    3) die "another run (process $(cat "$downloads/.lock")) is at work in $data; wait until it has ended" ;;
    *) echo "note: $downloads cannot be locked; take care not to start this twice" ;;
  esac
}

# ---- the straight path ---------------------------------------------------------------------------

keep=no data=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --keep) keep=yes ;;
    -*) die "unknown option $1; ./download_data.sh --help tells the options" 2 ;;
    '') die "the folder's name is empty; name a folder such as ./data" 2 ;;
    *)
      [ -z "$data" ] || die "found two folders, $data and $1, expected one" 2
      data=$1
      ;;
  esac
  shift
done
data=${data:-./data}
while [ "${data%/}" != "$data" ] && [ "$data" != / ]; do data=${data%/}; done
root=$data/decathlon-1.0 downloads=$data/downloads
url=${DECATHLON_URL:-$official_url}
url=${url%/}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

command -v curl >/dev/null || command -v wget >/dev/null ||
  die 'found neither curl nor wget; install one of them'
command -v sha256sum >/dev/null || command -v shasum >/dev/null ||
  die 'found neither sha256sum nor shasum; install one of them'
python3 -I -c 'import fcntl, tarfile, zlib' 2>/dev/null || die 'found no working python3; install it'

sums=$official_sums
if [ -n "${DECATHLON_SHA256SUMS:-}" ]; then
  sums=$(cat "$DECATHLON_SHA256SUMS" 2>/dev/null) ||
    die "DECATHLON_SHA256SUMS: found no file $DECATHLON_SHA256SUMS to read, expected one as sha256sum writes it; correct the path"
fi
devkit_sum=$(expected_sum "$devkit")
images_sum=$(expected_sum "$images")
imagenet_sum=$(expected_sum "$imagenet")
needed="$devkit $images"
[ -z "$(imagenet_archive)" ] || needed="$needed $imagenet"
for name in $needed; do
  sum=$(expected_sum "$name")
  [ "${#sum}" = 64 ] ||
    die "DECATHLON_SHA256SUMS: $DECATHLON_SHA256SUMS has no sha256 of $name; add the line that sha256sum prints"
done

if all_in_place; then
  echo "$root: the nine target tasks are in place, nothing to do"
else
  { mkdir -p "$downloads" && : >>"$downloads/.lock"; } 2>/dev/null ||
    die "$downloads cannot be written to; check its permissions and the space left, or name another folder"
  lock
  if ! in_place "$root/annotations" "$devkit_sum"; then
    obtain "$devkit" "$devkit_sum"
    echo "unpacking $devkit"
    unpack devkit "$downloads/$devkit" "$devkit_sum" "$root"
    [ $keep = yes ] || rm -f "$downloads/$devkit"
  fi
  if ! images_in_place; then
    obtain "$images" "$images_sum"
    echo "unpacking $images"
    unpack images "$downloads/$images" "$images_sum" "$root"
    [ $keep = yes ] || rm -f "$downloads/$images"
  fi
  archive=$(imagenet_archive)
  if [ -n "$archive" ] && ! in_place "$root/data/imagenet12" "$imagenet_sum"; then
    echo "checking $archive"
    found=$(sha256_of "$archive")
    [ "$found" = "$imagenet_sum" ] ||
      die "$archive has sha256 $found, expected $imagenet_sum; is it whole? Fetch it again, and for another archive than the official one name a file with its sum (DECATHLON_SHA256SUMS)"
    echo "unpacking $imagenet (over a million files in the official one)"
    unpack imagenet "$archive" "$imagenet_sum" "$root"
    echo "$archive is no longer needed and may be deleted"
  fi
  rm -rf "$root/.unpacking" "$root/data/.unpacking"
  echo "$root: the nine target tasks are in place"
fi

for folder in "$root/annotations" "$root"/data/*/; do
  if [ -d "$folder" ] && [ ! -f "$folder/.unpacked_from" ]; then
    echo "note: ${folder%/} was not made by this script and is left as it is"
  fi
done

if ! [ -d "$root/data/imagenet12" ]; then
  cat <<HINT

imagenet12 is not here. It is needed only to train the source network, or to submit answers for
imagenet12; the nine other tasks are trained from pretrained weights without it. To add it, fetch
  $imagenet_url
(it asks for an ImageNet login), put it into $downloads and run this again.
HINT
fi
if ! [ -f "$here/$weights" ]; then
  cat <<HINT

The pretrained weights, $weights, are not here. Fetch
  $weights_url
and put the file into $here, or name it with --pretrained FILE.
HINT
fi
