package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// manifestVersion is raised when an older engine could misunderstand a manifest. Added fields do not raise it.
const manifestVersion = 1

// manifestLimit bounds what is read as a manifest, in bytes: repositories are not trusted.
const manifestLimit = 64 << 20

// manifest is vm.json: everything about a point that restic's own format has no place for.
type manifest struct {
	Version int       `json:"version"`
	Tool    string    `json:"tool"`
	Time    time.Time `json:"time"`            // when the snapshot was taken
	Begun   time.Time `json:"begun,omitzero"`  // by the server's clock, before the snapshot was taken
	Frozen  time.Time `json:"frozen,omitzero"` // by the server's clock, after

	Machine     manifestMachine    `json:"machine"`
	Consistency plugin.Consistency `json:"consistency"`
	Quiesce     []string           `json:"quiesce,omitempty"`  // what was tried and why it was not reached
	Chunking    string             `json:"chunking,omitempty"` // rule that disks were cut into chunks by; older points, which are without, by restic's
	Disks       []manifestDisk     `json:"disks"`

	Networks []manifestNIC  `json:"networks,omitempty"`
	Files    *manifestFiles `json:"files,omitempty"` // guest files, where they were asked for

	// Config is the machine's ConfigInfo in vim25's JSON encoding, as it was at the snapshot.
	Config json.RawMessage `json:"config,omitempty"`
}

type manifestMachine struct {
	Name         string   `json:"name"`
	Path         string   `json:"path"`
	ID           string   `json:"id"`
	InstanceUUID string   `json:"instanceUuid"`
	BIOSUUID     string   `json:"biosUuid"`
	VCenter      string   `json:"vcenter"` // instanceUuid of the vCenter or host
	APIVersion   string   `json:"apiVersion,omitempty"`
	Host         string   `json:"host,omitempty"`
	Folder       string   `json:"folder,omitempty"`
	ResourcePool string   `json:"resourcePool,omitempty"`
	HostBuild    string   `json:"hostBuild,omitempty"`
	GuestOS      string   `json:"guestOS,omitempty"`
	HWVersion    string   `json:"hwVersion,omitempty"`
	PowerState   string   `json:"powerState,omitempty"`
	Template     bool     `json:"template,omitempty"`
	Encrypted    bool     `json:"encrypted,omitempty"` // by vSphere; Config names the key. The .nvram in the point is encrypted too
	VTPM         bool     `json:"vtpm,omitempty"`
	Restored     string   `json:"restored,omitempty"`  // mark left by the last restore into this machine
	Snapshots    []string `json:"snapshots,omitempty"` // foreign snapshots at that time, by id
}

type manifestDisk struct {
	Name        string   `json:"name"`
	Key         int32    `json:"key"`
	Label       string   `json:"label,omitempty"`
	UUID        string   `json:"uuid"`
	Path        string   `json:"path"`
	Chain       []string `json:"chain,omitempty"` // datastore paths from the frozen link down to the base
	Capacity    int64    `json:"capacity"`
	ChangeID    string   `json:"changeId,omitempty"`
	Incremental bool     `json:"incremental"`
	Reason      string   `json:"reason"`
	Transport   string   `json:"transport,omitempty"`
	Read        int64    `json:"read"`
	Changed     int64    `json:"changed,omitempty"`
	Reused      int64    `json:"reused,omitempty"`
	Skipped     string   `json:"skipped,omitempty"`
	Encrypted   bool     `json:"encrypted,omitempty"` // on its datastore, by vSphere; not in the point
}

// manifestNIC is a network card; its network's name is not always in Config.
type manifestNIC struct {
	Key     int32  `json:"key"`
	Label   string `json:"label,omitempty"`
	Network string `json:"network"`
	MAC     string `json:"mac,omitempty"`
	Kind    string `json:"kind,omitempty"`
}

// manifestFiles says what of the guest's files is in the point.
type manifestFiles struct {
	Files int64    `json:"files"`
	Kept  int64    `json:"kept"` // not read, since they are as in the previous point
	Notes []string `json:"notes,omitempty"`
}

// noImage is why a disk is skipped whose files only were asked for.
const noImage = "no image was asked for"

// withoutImages is the manifest with the disks that were skipped for want of an image as if they had one: their change
// ids are good for files.
func (m *manifest) withoutImages() *manifest {
	out := *m
	out.Disks = slices.Clone(m.Disks)
	for i := range out.Disks {
		if out.Disks[i].Skipped == noImage {
			out.Disks[i].Skipped = ""
		}
	}
	return &out
}

func (m *manifest) networkCards() []vsphere.NIC {
	out := make([]vsphere.NIC, len(m.Networks))
	for i, n := range m.Networks {
		out[i] = vsphere.NIC(n)
	}
	return out
}

func (m *manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return b.Bytes(), nil
}

// parseManifest reads vm.json. The repository is untrusted: names and sizes are checked here, once.
func parseManifest(b []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.Version < 1 || m.Version > manifestVersion {
		return nil, fmt.Errorf("manifest: version %d, this program understands up to %d: use a newer vmkeep", m.Version, manifestVersion)
	}
	seen := map[string]bool{}
	for _, d := range m.Disks {
		switch {
		case d.Name == "" || d.Name != safeName(d.Name) || strings.HasPrefix(d.Name, "."):
			return nil, fmt.Errorf("manifest: disk name %q", d.Name)
		case seen[d.Name]:
			return nil, fmt.Errorf("manifest: two disks are named %q", d.Name)
		case d.Capacity < 0 || d.Capacity%512 != 0:
			return nil, fmt.Errorf("manifest: disk %s has %d bytes", d.Name, d.Capacity)
		}
		seen[d.Name] = true
	}
	return &m, nil
}

func (m *manifest) disk(name string) *manifestDisk {
	for i := range m.Disks {
		if m.Disks[i].Name == name {
			return &m.Disks[i]
		}
	}
	return nil
}

// Tags of a point's snapshot document. restic separates tags with commas, so values hold none.
const (
	tagPoint   = "vmkeep"
	tagMachine = "vm="
	tagVCenter = "vc="
)

func pointTags(m *manifest, extra []string) []string {
	tags := []string{tagPoint, tagMachine + m.Machine.InstanceUUID, tagVCenter + m.Machine.VCenter, string(m.Consistency)}
	for _, t := range extra {
		if t = strings.ReplaceAll(strings.TrimSpace(t), ",", "_"); t != "" {
			tags = append(tags, t)
		}
	}
	return tags
}

// tagValue returns what follows prefix in the first tag that has it.
func tagValue(tags []string, prefix string) string {
	for _, t := range tags {
		if v, ok := strings.CutPrefix(t, prefix); ok {
			return v
		}
	}
	return ""
}

// begun is when the point was begun, by the server's clock; points of older versions tell only when it was taken.
func (m *manifest) begun() time.Time {
	if m.Begun.IsZero() {
		return m.Time
	}
	return m.Begun
}
