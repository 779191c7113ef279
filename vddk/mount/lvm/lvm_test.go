package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// pattern is a disk whose bytes tell where they are: each 8 bytes are the disk's number and their own offset / 8.
// Patches lie over it.
type pattern struct {
	n       int
	size    int64
	patches map[int64][]byte
}

func (p *pattern) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		o := off + int64(i)
		if o >= p.size {
			return i, io.EOF
		}
		word := binary.LittleEndian.AppendUint64(nil, uint64(p.n)<<56|uint64(o/8))
		b[i] = word[o%8]
	}
	for at, patch := range p.patches {
		if lo := at - off; lo >= 0 && lo < int64(len(b)) {
			copy(b[lo:], patch)
		} else if lo < 0 && -lo < int64(len(patch)) {
			copy(b, patch[-lo:])
		}
	}
	return len(b), nil
}

// where reads where byte off of a device lies: disk, offset. -1 for zeros.
func where(t *testing.T, d device.Device, off int64) (disk int, at int64) {
	t.Helper()
	b := make([]byte, 8)
	if n, err := d.ReadAt(b, off); n != 8 {
		t.Fatalf("read at %d: %d, %v", off, n, err)
	}
	v := binary.LittleEndian.Uint64(b)
	disk, at = int(v>>56), int64(v&(1<<56-1))*8
	if v == 0 {
		disk, at = -1, 0
	}
	err := d.Locate(extent.Extent{Off: off, Len: 8}, func(p device.Piece) bool {
		if p.Disk != disk || p.Off != at || p.Len != 8 {
			t.Errorf("byte %d is read from disk %d at %d, and located on disk %d at %d", off, disk, at, p.Disk, p.Off)
		}
		return true
	})
	if err != nil {
		t.Errorf("locate %d: %v", off, err)
	}
	return disk, at
}

// label writes a label and a metadata area with text, as pvcreate and vgcreate leave them, at half the ring so that
// long texts wrap.
func label(p *pattern, uuid, text string) {
	le := binary.LittleEndian
	sector := make([]byte, 512)
	copy(sector, "LABELONE")
	le.PutUint64(sector[8:], 1)
	le.PutUint32(sector[20:], 32)
	copy(sector[24:], "LVM2 001")
	copy(sector[32:], uuid)
	le.PutUint64(sector[64:], uint64(p.size))
	le.PutUint64(sector[72:], 1<<20) // data area, then the end of the list
	const area, size = 4096, 1<<20 - 4096
	le.PutUint64(sector[104:], area)
	le.PutUint64(sector[112:], size)
	le.PutUint32(sector[16:], crc(sector[20:]))
	p.patches[512] = sector

	head := make([]byte, 512)
	copy(head[4:], " LVM2 x[5A%r0N*>")
	le.PutUint32(head[20:], 1)
	le.PutUint64(head[24:], area)
	le.PutUint64(head[32:], size)
	at := int64(size - 700)
	le.PutUint64(head[40:], uint64(at))
	le.PutUint64(head[48:], uint64(len(text)))
	le.PutUint32(head[56:], crc([]byte(text)))
	le.PutUint32(head, crc(head[4:]))
	p.patches[area] = head
	p.patches[area+at] = []byte(text[:min(700, len(text))])
	if len(text) > 700 {
		p.patches[area+512] = []byte(text[700:])
	}
}

const ext = 4 << 20 // bytes of an extent below

func uuidOf(n int) string { return strings.Repeat(string(rune('a'+n)), 32) }

// machine makes PVs pv0..pvN with 1 MiB before their extents and a group vg with the volumes given as text.
func machine(pvs int, volumes string) ([]device.Candidate, []*pattern) {
	var b strings.Builder
	fmt.Fprintf(&b, "# made for a test\nvg {\nid = \"VGUUID\"\nseqno = 7\nformat = \"lvm2\"\nextent_size = 8192\nphysical_volumes {\n")
	for n := range pvs {
		u := uuidOf(n)
		dashed := u[:6] + "-" + u[6:10] + "-" + u[10:14] + "-" + u[14:18] + "-" + u[18:22] + "-" + u[22:26] + "-" + u[26:]
		fmt.Fprintf(&b, "pv%d {\nid = \"%s\"\ndevice = \"/dev/sd%c\"\npe_start = 2048\npe_count = 15\n}\n", n, dashed, 'a'+n)
	}
	fmt.Fprintf(&b, "}\nlogical_volumes {\n%s\n}\n}\n", volumes)
	var cs []device.Candidate
	var ps []*pattern
	for n := range pvs {
		p := &pattern{n: n + 1, size: 64 << 20, patches: map[int64][]byte{}}
		label(p, uuidOf(n), b.String())
		ps = append(ps, p)
		cs = append(cs, device.Candidate{Dev: device.Disk(p, n+1, p.size), Name: fmt.Sprintf("disk%d", n)})
	}
	return cs, ps
}

// lv is the text of a volume; "hidden" in its name makes it so.
func lv(name string, segments ...string) string {
	visible := `"VISIBLE"`
	if strings.Contains(name, "hidden") {
		visible = ""
	}
	s := fmt.Sprintf("%s {\nid = \"%s\"\nstatus = [\"READ\", %s]\nsegment_count = %d\n", name, name, visible, len(segments))
	for i, seg := range segments {
		s += fmt.Sprintf("segment%d {\n%s\n}\n", i+1, seg)
	}
	return s + "}\n"
}

func seg(start, count int, rest string) string {
	return fmt.Sprintf("start_extent = %d\nextent_count = %d\n%s", start, count, rest)
}

func find(t *testing.T, a device.Assembly, name string) device.Logical {
	t.Helper()
	for _, l := range a.Logicals {
		if l.Name == name {
			return l
		}
	}
	t.Fatalf("no %s in %v; problems %v", name, a.Logicals, a.Problems)
	return device.Logical{}
}

// expect checks places of a volume: each is offset, disk, offset on the disk.
func expect(t *testing.T, d device.Device, places [][3]int64) {
	t.Helper()
	for _, p := range places {
		if disk, at := where(t, d, p[0]); int64(disk) != p[1] || at != p[2] {
			t.Errorf("byte %d lies on disk %d at %d, want disk %d at %d", p[0], disk, at, p[1], p[2])
		}
	}
}

const first = 1 << 20 // of extent 0 on a disk

func TestLinearAndStriped(t *testing.T) {
	cs, _ := machine(3, lv("lin", seg(0, 2, `type = "striped"
		stripe_count = 1
		stripes = [ "pv1", 3 ]`), seg(2, 1, `type = "striped"
		stripes = [
			"pv0", 0
		]`))+lv("str", seg(0, 6, `type = "striped"
		stripe_size = 128
		stripes = ["pv0", 5, "pv1", 6, "pv2", 7]`)))
	a := Assemble(cs)
	if len(a.Problems) != 0 || len(a.Members) != 3 || a.Members[0] != "vg" {
		t.Errorf("members %v, problems %v", a.Members, a.Problems)
	}
	lin := find(t, a, "vg/lin")
	if lin.Dev.Size() != 3*ext || lin.UUID != "lin" || !slices.Contains(lin.Paths, "/dev/mapper/vg-lin") {
		t.Errorf("%+v of %d bytes", lin, lin.Dev.Size())
	}
	expect(t, lin.Dev, [][3]int64{{0, 2, first + 3*ext}, {2*ext - 8, 2, first + 5*ext - 8}, {2 * ext, 1, first}, {3*ext - 8, 1, first + ext - 8}})
	const k = 64 << 10
	expect(t, find(t, a, "vg/str").Dev, [][3]int64{
		{0, 1, first + 5*ext}, {k, 2, first + 6*ext}, {2 * k, 3, first + 7*ext}, {3*k + 8, 1, first + 5*ext + k + 8},
		{6*ext - 8, 3, first + 9*ext - 8},
	})
}

// Rows of RAID layouts, as md(4) draws them: "" is parity.
func TestRAIDLayouts(t *testing.T) {
	for kind, rows := range map[string][]string{
		"raid0":    {"0 1 2 3", "4 5 6 7"},
		"raid4":    {"P 0 1 2", "P 3 4 5"},
		"raid5_n":  {"0 1 2 P", "3 4 5 P"},
		"raid5_ls": {"0 1 2 P", "4 5 P 3", "8 P 6 7", "P 9 10 11", "12 13 14 P"},
		"raid5_la": {"0 1 2 P", "3 4 P 5", "6 P 7 8", "P 9 10 11"},
		"raid5_rs": {"P 0 1 2", "5 P 3 4", "7 8 P 6", "9 10 11 P"},
		"raid5_ra": {"P 0 1 2", "3 P 4 5", "6 7 P 8", "9 10 11 P"},
		"raid6_zr": {"P Q 0 1", "2 P Q 3", "4 5 P Q", "Q 6 7 P"},
		"raid6_nr": {"0 1 P Q", "2 P Q 3", "P Q 4 5", "Q 6 7 P"},
		"raid6_nc": {"0 1 Q P", "3 Q P 2", "Q P 4 5", "P 6 7 Q"},
	} {
		var vols string
		pair := []string{}
		for i := range 4 {
			vols += lv(fmt.Sprintf("hidden_d%d", i), seg(0, 2, fmt.Sprintf(`type = "striped"
				stripes = ["pv%d", 2]`, i)))
			vols += lv(fmt.Sprintf("hidden_m%d", i), seg(0, 1, fmt.Sprintf(`type = "striped"
				stripes = ["pv%d", 0]`, i)))
			pair = append(pair, fmt.Sprintf(`"hidden_m%d", "hidden_d%d"`, i, i))
		}
		cs, _ := machine(4, vols+lv("r", seg(0, 4, fmt.Sprintf("type = \"%s\"\nstripe_size = 128\nraids = [%s]", kind, strings.Join(pair, ", ")))))
		a := Assemble(cs)
		l := find(t, a, "vg/r")
		if l.Missing != "" {
			t.Errorf("%s: %s", kind, l.Missing)
			continue
		}
		const k = 64 << 10
		for row, line := range rows {
			for disk, chunk := range strings.Fields(line) {
				var n int64
				if _, err := fmt.Sscan(chunk, &n); err != nil {
					continue
				}
				if d, at := where(t, l.Dev, n*k); d != disk+1 || at != first+2*ext+int64(row)*k {
					t.Errorf("%s: chunk %d is row %d of disk %d, want row %d of disk %d", kind, n, (at-first-2*ext)/k, d-1, row, disk)
				}
			}
		}
	}
}

func mirrorText() string {
	vols := ""
	for i := range 2 {
		vols += lv(fmt.Sprintf("hidden_d%d", i), seg(0, 1, fmt.Sprintf("type = \"striped\"\nstripes = [\"pv%d\", 2]", i)))
		vols += lv(fmt.Sprintf("hidden_m%d", i), seg(0, 1, fmt.Sprintf("type = \"striped\"\nstripes = [\"pv%d\", 0]", i)))
	}
	return vols + lv("r", seg(0, 1, `type = "raid1"
		raids = ["hidden_m0", "hidden_d0", "hidden_m1", "hidden_d1"]`)) +
		lv("m", seg(0, 1, "type = \"mirror\"\nmirrors = [\"hidden_d0\", 0, \"hidden_d1\", 0]"))
}

func raidSuper(failed, rebuilt, events uint64) []byte {
	b := binary.LittleEndian.AppendUint32([]byte("DmRd"), 0)
	b = append(b, make([]byte, 8)...)
	for _, v := range []uint64{events, failed, rebuilt, 1<<64 - 1} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

func TestMirrorsReadACopyThatIsWhole(t *testing.T) {
	cs, _ := machine(2, mirrorText())
	a := Assemble(cs)
	expect(t, find(t, a, "vg/r").Dev, [][3]int64{{0, 1, first + 2*ext}})
	expect(t, find(t, a, "vg/m").Dev, [][3]int64{{8, 1, first + 2*ext + 8}})

	// The first disk is not there.
	a = Assemble(cs[1:])
	expect(t, find(t, a, "vg/r").Dev, [][3]int64{{0, 2, first + 2*ext}})
	expect(t, find(t, a, "vg/m").Dev, [][3]int64{{0, 2, first + 2*ext}})
	if len(a.Problems) != 1 || !strings.Contains(a.Problems[0], "/dev/sda") {
		t.Errorf("problems %q do not name the missing disk", a.Problems)
	}

	// The newer superblock says that leg 0 has failed.
	cs, ps := machine(2, mirrorText())
	ps[0].patches[first] = raidSuper(0, 1<<64-1, 4)
	ps[1].patches[first] = raidSuper(1, 1<<64-1, 9)
	expect(t, find(t, Assemble(cs), "vg/r").Dev, [][3]int64{{0, 2, first + 2*ext}})

	// Leg 0 is being rebuilt.
	ps[0].patches[first] = raidSuper(0, 4096, 9)
	ps[1].patches[first] = raidSuper(0, 1<<64-1, 9)
	expect(t, find(t, Assemble(cs), "vg/r").Dev, [][3]int64{{0, 2, first + 2*ext}})

	// Both have failed: nothing is read.
	ps[0].patches[first] = raidSuper(3, 1<<64-1, 10)
	if l := find(t, Assemble(cs), "vg/r"); l.Missing == "" {
		t.Error("a mirror without any whole leg is read")
	}
}

func TestNearCopiesOfRAID10(t *testing.T) {
	vols, pair := "", []string{}
	for i := range 4 {
		vols += lv(fmt.Sprintf("hidden_d%d", i), seg(0, 1, fmt.Sprintf("type = \"striped\"\nstripes = [\"pv%d\", 2]", i)))
		pair = append(pair, fmt.Sprintf(`"", "hidden_d%d"`, i))
	}
	cs, _ := machine(4, vols+lv("r", seg(0, 2, "type = \"raid10\"\nstripe_size = 128\nraids = ["+strings.Join(pair, ", ")+"]")))
	const k = 64 << 10
	expect(t, find(t, Assemble(cs), "vg/r").Dev, [][3]int64{{0, 1, first + 2*ext}, {k, 3, first + 2*ext}, {2 * k, 1, first + 2*ext + k}})
	// Without disk 0 its copy is read.
	expect(t, find(t, Assemble(cs[1:]), "vg/r").Dev, [][3]int64{{0, 2, first + 2*ext}, {k, 3, first + 2*ext}})
}

func TestSnapshotReadsWhatTheOriginHeld(t *testing.T) {
	vols := lv("org", seg(0, 2, "type = \"striped\"\nstripes = [\"pv0\", 0]")) +
		lv("snap", seg(0, 1, "type = \"striped\"\nstripes = [\"pv0\", 4]")) +
		lv("hidden_snapshot0", seg(0, 2, "type = \"snapshot\"\nchunk_size = 8\norigin = \"org\"\ncow_store = \"snap\""))
	cs, ps := machine(1, vols)
	le := binary.LittleEndian
	head := append([]byte("SnAp"), 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0)
	ps[0].patches[first+4*ext] = head
	table := make([]byte, 4096)
	le.PutUint64(table[0:], 5) // chunk 5 of the origin lies in chunk 2 of the store
	le.PutUint64(table[8:], 2)
	le.PutUint64(table[16:], 0)
	le.PutUint64(table[24:], 3)
	ps[0].patches[first+4*ext+4096] = table
	a := Assemble(cs)
	snap := find(t, a, "vg/snap")
	if snap.Dev.Size() != 2*ext {
		t.Errorf("snapshot of %d bytes", snap.Dev.Size())
	}
	expect(t, snap.Dev, [][3]int64{
		{8, 1, first + 4*ext + 3*4096 + 8}, {4096, 1, first + 4096}, {5*4096 + 8, 1, first + 4*ext + 2*4096 + 8}, {6 * 4096, 1, first + 6*4096},
	})
	expect(t, find(t, a, "vg/org").Dev, [][3]int64{{5 * 4096, 1, first + 5*4096}})

	ps[0].patches[first+4*ext] = append([]byte("SnAp"), 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0)
	if l := find(t, Assemble(cs), "vg/snap"); !strings.Contains(l.Missing, "invalid") {
		t.Errorf("an overflowed snapshot: %q", l.Missing)
	}
}

// node makes a node of a thin pool's trees.
func node(number uint64, leaf bool, pairs ...uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, nodeLen)
	le.PutUint32(b[4:], 1)
	if leaf {
		le.PutUint32(b[4:], 2)
	}
	le.PutUint64(b[8:], number)
	le.PutUint32(b[16:], uint32(len(pairs)/2))
	const room = 252
	le.PutUint32(b[20:], room)
	le.PutUint32(b[24:], 8)
	for i := 0; i < len(pairs); i += 2 {
		le.PutUint64(b[32+4*i:], pairs[i])
		le.PutUint64(b[32+8*room+4*i:], pairs[i+1])
	}
	return b
}

func thinText() string {
	return lv("hidden_tmeta", seg(0, 1, "type = \"striped\"\nstripes = [\"pv0\", 0]")) +
		lv("hidden_tdata", seg(0, 4, "type = \"striped\"\nstripes = [\"pv0\", 4]")) +
		lv("pool", seg(0, 4, "type = \"thin-pool\"\nmetadata = \"hidden_tmeta\"\npool = \"hidden_tdata\"\nchunk_size = 128")) +
		lv("thin", seg(0, 8, "type = \"thin\"\nthin_pool = \"pool\"\ndevice_id = 3"))
}

func TestThinVolume(t *testing.T) {
	cs, ps := machine(1, thinText())
	sb := make([]byte, nodeLen)
	le := binary.LittleEndian
	le.PutUint64(sb[0x20:], thinMagic)
	le.PutUint64(sb[0x140:], 1)
	le.PutUint32(sb[0x150:], 128)
	for n, b := range [][]byte{
		sb,
		node(1, true, 1, 9, 3, 2), // volume 3 has its tree at node 2
		node(2, false, 0, 3, 40, 4),
		node(3, true, 0, 7<<24|1, 2, 8<<24|1),
		node(4, true, 40, 1<<24|5, 127, 0<<24|5),
	} {
		ps[0].patches[first+int64(n)*nodeLen] = b
	}
	a := Assemble(cs)
	l := find(t, a, "vg/thin")
	if l.Missing != "" || len(a.Logicals) != 1 {
		t.Fatalf("%+v", a)
	}
	const k, data = 64 << 10, first + 4*ext
	expect(t, l.Dev, [][3]int64{
		{16, 1, data + 7*k + 16}, {k, -1, 0}, {2 * k, 1, data + 8*k}, {3 * k, -1, 0}, {39 * k, -1, 0}, {40 * k, 1, data + k}, {127 * k, 1, data},
	})
	// A node that claims to be another is damage, not data.
	ps[0].patches[first+3*nodeLen] = node(9, true, 0, 7<<24)
	l = find(t, Assemble(cs), "vg/thin")
	if _, err := l.Dev.ReadAt(make([]byte, 8), 0); err == nil {
		t.Error("a damaged node was believed")
	}
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	cs, _ := machine(2, lv("wb", seg(0, 1, "type = \"cache\"\norigin = \"hidden_o\"\ncache_vol = \"c\"\ncache_mode = \"writeback\""))+
		lv("wt", seg(0, 1, "type = \"cache+CACHE_USES_CACHEVOL\"\norigin = \"hidden_o\"\ncache_mode = \"writethrough\""))+
		lv("hidden_o", seg(0, 1, "type = \"striped\"\nstripes = [\"pv0\", 9]"))+
		lv("vdo", seg(0, 1, "type = \"vdo\"\nvdo_pool = \"x\""))+
		lv("far", seg(0, 2, "type = \"striped\"\nstripes = [\"pv1\", 1]"))+
		lv("loop", seg(0, 1, "type = \"striped\"\nstripes = [\"loop\", 0]"))+
		lv("past", seg(0, 9, "type = \"striped\"\nstripes = [\"pv0\", 14]")))
	a := Assemble(cs[:1])
	for name, want := range map[string]string{
		"vg/wb": "cache", "vg/vdo": "vdo", "vg/far": "/dev/sdb", "vg/loop": "made of itself", "vg/past": "beyond",
	} {
		l := find(t, a, name)
		if !strings.Contains(l.Missing, want) {
			t.Errorf("%s: %q does not say %q", name, l.Missing, want)
		}
		if _, err := l.Dev.ReadAt(make([]byte, 8), 0); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	expect(t, find(t, a, "vg/wt").Dev, [][3]int64{{0, 1, first + 9*ext}})
	if _, err := find(t, a, "vg/far").Dev.ReadAt(make([]byte, 8), 0); !errors.Is(err, device.ErrMissing) {
		t.Errorf("a missing disk gives %v", err)
	}
	if a := Assemble([]device.Candidate{cs[0], cs[0]}); len(a.Problems) == 0 || !strings.Contains(a.Problems[0], "same physical volume") {
		t.Errorf("twice the same PV: %q", a.Problems)
	}
}

func TestNewestMetadataWins(t *testing.T) {
	cs, _ := machine(1, lv("old", seg(0, 1, "type = \"striped\"\nstripes = [\"pv0\", 0]")))
	newer, ps := machine(2, lv("new", seg(0, 1, "type = \"striped\"\nstripes = [\"pv0\", 0]")))
	text := string(ps[1].patches[4096+(1<<20-4096)-700]) + string(ps[1].patches[4096+512])
	label(ps[1], uuidOf(1), strings.Replace(text, "seqno = 7", "seqno = 8", 1))
	a := Assemble([]device.Candidate{cs[0], newer[1]})
	if len(a.Logicals) != 1 || a.Logicals[0].Name != "vg/new" {
		t.Errorf("%v, problems %v", a.Logicals, a.Problems)
	}
	// A text with a wrong checksum is not believed.
	ps[1].patches[1<<20-700][3] ^= 1
	if a := Assemble([]device.Candidate{cs[0], newer[1]}); len(a.Problems) == 0 || len(a.Logicals) != 1 || a.Logicals[0].Name != "vg/old" {
		t.Errorf("%v, problems %v", a.Logicals, a.Problems)
	}
}

func FuzzText(f *testing.F) {
	f.Add("vg { id = \"x\" seqno = 1 list = [ \"a\", 1, [2] ] # c\n }")
	f.Add("a = \"\\\"\" b = -1.5")
	f.Fuzz(func(t *testing.T, s string) {
		if g, err := newGroup(s); err == nil {
			g.volumes()
		}
	})
}

// FuzzLabel changes labels, headers and texts, whose checksums it makes right: what passes them must not be trusted.
func FuzzLabel(f *testing.F) {
	_, ps := machine(1, thinText())
	f.Add(ps[0].patches[512], ps[0].patches[4096], ps[0].patches[1<<20-700])
	f.Fuzz(func(t *testing.T, sector, area, text []byte) {
		disk := make([]byte, 64<<10)
		copy(disk[512:1024], sector)
		copy(disk[4096:4608], area)
		copy(disk[8192:], text)
		put := binary.LittleEndian.PutUint32
		put(disk[512+16:], crc(disk[512+20:1024]))
		put(disk[4096:], crc(disk[4100:4608]))
		Assemble([]device.Candidate{{Dev: device.Disk(bytes.NewReader(disk), 0, int64(len(disk))), Name: "disk"}})
	})
}

func TestThinPoolMadeByThinRestore(t *testing.T) {
	mounttest.NeedTools(t, "thin_restore")
	// Two volumes; the second has runs of chunks that lie backwards, in a tree of several levels.
	var xml strings.Builder
	xml.WriteString(`<superblock uuid="" time="1" transaction="3" version="2" data_block_size="256" nr_data_blocks="60000">
<device dev_id="1" mapped_blocks="1" transaction="1" creation_time="0" snap_time="0"><single_mapping origin_block="0" data_block="59999" time="0"/></device>
`)
	const chunks = 20000
	fmt.Fprintf(&xml, "<device dev_id=\"7\" mapped_blocks=\"%d\" transaction=\"2\" creation_time=\"1\" snap_time=\"1\">\n", chunks)
	for c := range chunks {
		fmt.Fprintf(&xml, "<single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"1\"/>\n", c*2, chunks-1-c)
	}
	xml.WriteString("</device></superblock>\n")
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.xml"), filepath.Join(dir, "meta")
	if err := os.WriteFile(in, []byte(xml.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("thin_restore", "-i", in, "-o", out).CombinedOutput(); err != nil {
		t.Fatalf("thin_restore: %v\n%s", err, b)
	}
	meta, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	const extents = chunks * 2 * (128 << 10) / ext
	text := strings.Replace(thinText(), "device_id = 3", "device_id = 7", 1)
	text = strings.Replace(text, "extent_count = 8", fmt.Sprintf("extent_count = %d", extents), 1)
	text = strings.Replace(text, "extent_count = 4", fmt.Sprintf("extent_count = %d", extents), -1)
	cs, ps := machine(1, text)
	ps[0].size = 8 << 30
	ps[0].patches[first] = meta
	cs[0].Dev = device.Disk(ps[0], 1, ps[0].size)
	l := find(t, Assemble(cs), "vg/thin")
	if l.Missing != "" {
		t.Fatal(l.Missing)
	}
	const k, data = 128 << 10, first + 4*ext
	for _, c := range []int64{0, 1, 125, 126, 127, 252, 5000, 9999, 19998, 19999} {
		expect(t, l.Dev, [][3]int64{{c*2*k + 32, 1, data + (chunks-1-c)*k + 32}, {(c*2 + 1) * k, -1, 0}})
	}
}
