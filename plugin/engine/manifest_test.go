package engine

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestManifestRoundTrip(t *testing.T) {
	m := &manifest{
		Version: manifestVersion, Tool: "vmkeep test", Time: time.Unix(1700000000, 0).UTC(), Consistency: "fs",
		Machine: manifestMachine{Name: "web <1>", InstanceUUID: "50-1", Snapshots: []string{"snapshot-1"}},
		Disks:   []manifestDisk{{Name: "scsi0-0", Key: 2000, UUID: "u", Capacity: 1 << 40, Reason: reasonFirst}},
		Config:  json.RawMessage(`{"name":"web"}`),
	}
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	var c bytes.Buffer
	if err := json.Compact(&c, got.Config); err != nil {
		t.Fatal(err)
	}
	got.Config = c.Bytes()
	if !reflect.DeepEqual(m, got) {
		t.Errorf("round trip changed the manifest:\n%+v\n%+v", m, got)
	}
}

func TestManifestRefusesHostileContent(t *testing.T) {
	for _, c := range []string{
		``, `{}`, `{"version":99}`, `[]`,
		`{"version":1,"disks":[{"name":"../../etc"}]}`,
		`{"version":1,"disks":[{"name":""}]}`,
		`{"version":1,"disks":[{"name":"a"},{"name":"a"}]}`,
		`{"version":1,"disks":[{"name":"a","capacity":-512}]}`,
		`{"version":1,"disks":[{"name":"a","capacity":513}]}`,
	} {
		if m, err := parseManifest([]byte(c)); err == nil {
			t.Errorf("%s was accepted as %+v", c, m)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"disks":[{"name":"scsi0-0","capacity":512}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		for _, d := range m.Disks {
			if strings.ContainsAny(d.Name, "/\\\x00") || d.Capacity < 0 {
				t.Errorf("accepted disk %+v", d)
			}
		}
	})
}

func TestPartsTileTheDisk(t *testing.T) {
	for _, size := range []int64{0, 512, PartSize - 512, PartSize, PartSize + 512, 5*PartSize + 1024} {
		var sum int64
		for n := range partCount(size) {
			l := partLen(size, n)
			if l <= 0 || l > PartSize {
				t.Errorf("size %d: part %d has %d bytes", size, n, l)
			}
			sum += l
			if back, err := parsePart(partName(n)); err != nil || back != n {
				t.Errorf("part %d: name %q gives %d, %v", n, partName(n), back, err)
			}
		}
		if sum != size {
			t.Errorf("parts of %d bytes hold %d", size, sum)
		}
	}
	for _, name := range []string{"", "1", "-001", "00001", "../0", "abcd"} {
		if n, err := parsePart(name); err == nil {
			t.Errorf("%q was accepted as part %d", name, n)
		}
	}
}
