package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// diskPair is a disk of the point and the disk of the machine that it goes to.
type diskPair struct {
	saved manifestDisk
	disk  vsphere.Disk
}

// pairing is what a restore over existing disks would overwrite with what.
type pairing struct {
	pairs    []diskPair
	problems []*plugin.Error
	notes    []plugin.Diagnostic
}

// pair finds the machine's disk for each chosen disk of the point: the one with its uuid, else the one at its place. No
// disk is taken twice, and none for its place when its uuid says that it is another disk of the point: somebody moved
// it there.
func (j *restoreJob) pair(st *vsphere.State) pairing {
	var out pairing
	taken := map[int32]bool{} // by device key
	find := func(ok func(vsphere.Disk) bool) int {
		return slices.IndexFunc(st.Disks, func(x vsphere.Disk) bool { return !taken[x.Key] && ok(x) })
	}
	for _, d := range j.disks {
		same := func(x vsphere.Disk) bool { return x.UUID == d.UUID && d.UUID != "" }
		i := find(func(x vsphere.Disk) bool { return same(x) && x.Name == d.Name }) // a clone may carry the uuid too
		if i < 0 {
			i = find(same)
		}
		if i < 0 {
			i = find(func(x vsphere.Disk) bool { return x.Name == d.Name })
			if i >= 0 {
				if other := j.point.manifest.diskByUUID(st.Disks[i].UUID); other != nil && other.UUID != "" {
					out.problems = append(out.problems, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "another disk of the point is at its place", Object: d.Name,
						Detail: fmt.Sprintf("%s is %s, the point's %s", d.Name, st.Disks[i].Path, other.Name), Remedy: "put the disks back to their places, or attach the disk instead (mode attach)"})
					continue
				}
			}
		}
		if i < 0 {
			out.problems = append(out.problems, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the machine has no such disk", Object: d.Name, Detail: st.Name + " has " + diskNames(st.Disks),
				Remedy: "attach the disk instead (mode attach), or choose among the disks that exist"})
			continue
		}
		x := st.Disks[i]
		if problem := unfit(x, d); problem != nil {
			out.problems = append(out.problems, problem)
			continue
		}
		if x.UUID != d.UUID {
			out.notes = append(out.notes, plugin.Diagnostic{Severity: plugin.SeverityWarning, Code: plugin.CodeTargetUnsuitable, Summary: "a disk that is not the point's own is overwritten", Object: x.Name,
				Detail: fmt.Sprintf("%s has the uuid %s, the point's disk %s", x.Path, x.UUID, d.UUID)})
		}
		if x.Capacity > d.Capacity {
			out.notes = append(out.notes, plugin.Diagnostic{Severity: plugin.SeverityWarning, Code: plugin.CodeTargetUnsuitable, Summary: "the machine's disk is larger than the point's", Object: x.Name,
				Detail: fmt.Sprintf("%d bytes at its end stay as they are", x.Capacity-d.Capacity)})
		}
		taken[x.Key] = true
		out.pairs = append(out.pairs, diskPair{d, x})
	}
	return out
}

// unfit says why a disk of the machine cannot take a disk of the point; nil: it can.
func unfit(x vsphere.Disk, d manifestDisk) *plugin.Error {
	switch {
	case x.Capacity < d.Capacity:
		return tooSmall(x, d)
	case x.Unprotected != "" && x.Sharing != "" && x.Sharing != "sharingNone":
		return &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "other machines may write to the disk", Object: x.Name, Detail: x.Unprotected, Remedy: "restore to a new machine"}
	}
	return nil
}

func tooSmall(to vsphere.Disk, d manifestDisk) *plugin.Error {
	return &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the target disk is too small", Object: to.Path,
		Detail: fmt.Sprintf("%d bytes, the point's disk has %d", to.Capacity, d.Capacity), Remedy: "restore to a disk of at least the same size"}
}

func diskNames(disks []vsphere.Disk) string {
	var names []string
	for _, d := range disks {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}
