#!/bin/sh
# Makes the golden repositories: what the real restic wrote, kept so that a change of ours, or of restic's, cannot
# hide behind a peer that is built anew each time. Run it from anywhere, with restic in $RESTIC or in bin/:
#
#	testdata/golden/make.sh
#
# v1.tar.gz    format version 1: no compression, so without the zeros
# v2.tar.gz    format version 2: two snapshots, tags, a second key, odd names, links, zeros, a deep directory
# pruned.tar.gz  the same after forget and prune, and data of the first snapshot gone
#
# files.sha256 lists the files of the newest snapshot. The password is "golden".
set -eu
here=$(cd "$(dirname "$0")" && pwd)
restic=${RESTIC:-$here/../../bin/restic}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export RESTIC_PASSWORD=golden TZ=UTC

mkdir -p "$work/vm/deep/er/and/deeper" "$work/vm/empty-dir"
cd "$work"
seq 1 9000 > vm/numbers
head -c 1600000 /dev/zero > vm/zeros
: > vm/empty
printf 'x' > 'vm/a "quoted" \ <name> & ü'
printf 'y' > "$(printf 'vm/not\377utf8')"
printf 'deep' > vm/deep/er/and/deeper/file
ln -s numbers vm/link
ln vm/empty vm/hard
find vm -exec touch -h -d 2026-01-02T03:04:05Z {} +

for version in 1 2; do
	[ $version = 2 ] || mv vm/zeros zeros
	repo=$work/v$version
	"$restic" -q -r "$repo" --no-cache init --repository-version $version
	"$restic" -q -r "$repo" --no-cache backup vm --host golden --tag one,two --time '2026-02-01 01:02:03'
	seq 1 2 12000 > vm/numbers
	touch -d 2026-01-02T03:04:05Z vm/numbers
	"$restic" -q -r "$repo" --no-cache backup vm --host golden --time '2026-02-02 01:02:03'
	seq 1 9000 > vm/numbers
	touch -d 2026-01-02T03:04:05Z vm/numbers
	[ $version = 2 ] || mv zeros vm/zeros
done
printf second > "$work/second"
"$restic" -q -r "$work/v2" --no-cache key add --new-password-file "$work/second" --user second --host elsewhere
cp -a "$work/v2" "$work/pruned"
"$restic" -q -r "$work/pruned" --no-cache forget --keep-last 1 --prune --max-unused 0

seq 1 2 12000 > vm/numbers
find vm -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --zero | tr '\0' '\n' > "$here/files.sha256"
for name in v1 v2 pruned; do
	chmod -R u+w "$work/$name"
	tar --sort=name --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$name" | gzip -9n > "$here/$name.tar.gz"
done
