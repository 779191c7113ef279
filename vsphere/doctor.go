package vsphere

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// Finding is the outcome of one examination.
type Finding struct {
	Name   string
	OK     bool
	Detail string
	Remedy string // what to do; empty when OK
}

// mostSkew is how far clocks may differ: certificates, tokens and the ages of snapshots depend on them.
const mostSkew = 2 * time.Minute

// leastFree is the share of a datastore below which snapshots are a risk for every machine on it.
const leastFree = 20 // one part in 20

// Doctor examines session, clock, privileges, hosts, datastores, machines and leftovers, and says what to do. It
// changes nothing. j may be nil.
func (c *Client) Doctor(ctx context.Context, j *Journal) []Finding {
	d := &doctor{c: c}
	d.add(true, "vSphere session", fmt.Sprintf("%s at %s, API %s", c.about.Product, c.about.URL, c.about.APIVersion), "")
	d.clock(ctx)
	machines, err := c.Machines(ctx, Selection{Templates: true})
	d.hosts(ctx, machines)
	d.datastores(ctx)
	if err != nil {
		d.failed("machines", err)
	} else {
		d.machines(machines)
	}
	d.privileges(ctx, len(machines))
	if j != nil {
		d.leftovers(ctx, j)
	}
	return d.findings
}

type doctor struct {
	c        *Client
	findings []Finding
}

func (d *doctor) add(ok bool, name, detail, remedy string) {
	if ok {
		remedy = ""
	}
	d.findings = append(d.findings, Finding{Name: name, OK: ok, Detail: detail, Remedy: remedy})
}

func (d *doctor) failed(name string, err error) {
	remedy := "mend this first, then run doctor again"
	var e *Error
	if errors.As(err, &e) && e.Remedy != "" {
		remedy = e.Remedy
	}
	d.add(false, name, err.Error(), remedy)
}

func (d *doctor) clock(ctx context.Context) {
	skew, err := d.c.clockSkew(ctx)
	if err != nil {
		d.failed("clock", err)
		return
	}
	d.add(skew.Abs() <= mostSkew, "clock", fmt.Sprintf("the server's clock differs by %v", skew.Round(time.Second)), "let both follow the same time server")
}

// reach is how long a connection to a host may take.
const reach = 5 * time.Second

// hosts tries the way to the disks of each host.
func (d *doctor) hosts(ctx context.Context, machines []Machine) {
	hosts, err := d.c.Hosts(ctx)
	if err != nil {
		d.failed("hosts", err)
		return
	}
	if len(hosts) == 0 {
		d.add(false, "hosts", "no host is visible", "give the account a role on the hosts, propagated from the root folder")
	}
	for _, h := range hosts {
		name := "host " + h.Name
		switch {
		case !h.Connected:
			d.add(false, name, "it is not connected", "connect it: its machines cannot be backed up")
			continue
		case h.Maintenance:
			d.add(true, name, "it is in maintenance mode", "")
			continue
		}
		d.disks(ctx, name, h, machines)
	}
}

// disks tries the port of a host where disks are read: the one that a ticket for a machine's disks names, so that what
// is tried is what backups use. A host without such a machine is tried under its own name, and may be out of reach:
// nothing is read there.
func (d *doctor) disks(ctx context.Context, name string, h Host, machines []Machine) {
	address, used := net.JoinHostPort(h.Name, fmt.Sprint(nfcPort)), false
	if i := slices.IndexFunc(machines, func(m Machine) bool { return m.HostID == h.ID && m.Connection == "connected" && len(m.Disks) > 0 }); i >= 0 {
		t, err := d.c.VM(machines[i]).ReadTicket(ctx, machines[i].Disks[0].Key)
		if err != nil {
			d.failed(name, err)
			return
		}
		address, used = net.JoinHostPort(t.Host, fmt.Sprint(t.Port)), true
	}
	conn, err := (&net.Dialer{Timeout: reach}).DialContext(ctx, "tcp", address)
	switch {
	case err == nil:
		conn.Close()
		d.add(true, name, fmt.Sprintf("ESXi %s, %s, where disks are read, is reachable", h.Version, address), "")
	case used:
		d.add(false, name, fmt.Sprintf("%s, where disks are read, is not reachable: %v", address, err), "open the firewall from here to the host, and make its name resolvable here")
	default:
		d.add(true, name, fmt.Sprintf("ESXi %s; no machine with disks is on it; %s is not reachable: %v", h.Version, address, err), "")
	}
}

func (d *doctor) datastores(ctx context.Context) {
	list, err := d.c.Datastores(ctx)
	if err != nil {
		d.failed("datastores", err)
		return
	}
	for _, s := range list {
		name := "datastore " + s.Name
		switch {
		case !s.Accessible:
			d.add(false, name, "it is not accessible", "bring it back: machines on it cannot be backed up")
		case s.Maintenance != "normal":
			d.add(false, name, "its mode is "+s.Maintenance, "end maintenance mode")
		case s.Free < s.Capacity/leastFree:
			d.add(false, name, fmt.Sprintf("%d of %d GiB are free", s.Free>>30, s.Capacity>>30), "free space: snapshots grow while a backup runs, and a full datastore stops every machine on it")
		default:
			d.add(true, name, fmt.Sprintf("%d of %d GiB are free", s.Free>>30, s.Capacity>>30), "")
		}
	}
}

func (d *doctor) machines(list []Machine) {
	var away, tools, merge, off, old, disks []string
	for _, m := range list {
		switch {
		case m.Connection != "connected":
			away = append(away, m.Path)
			continue
		case m.Template:
			continue
		}
		if m.Power == PoweredOn && !m.ToolsRunning {
			tools = append(tools, m.Path)
		}
		if m.Consolidate {
			merge = append(merge, m.Path)
		}
		if !m.CBT {
			if hardware(m.HWVersion) < 7 {
				old = append(old, m.Path)
			} else if m.Snapshots > 0 {
				off = append(off, m.Path)
			}
		}
		for _, x := range m.Disks {
			if x.Unprotected != "" {
				disks = append(disks, fmt.Sprintf("%s %s (%s)", m.Path, x.Name, x.Unprotected))
			}
		}
	}
	d.add(len(list) > 0, "machines", fmt.Sprintf("%d are visible", len(list)), "give the account a role on the machines, propagated from the root folder")
	d.list(away, "unreachable machines", "are disconnected, inaccessible or orphaned", "bring their hosts and datastores back")
	d.list(tools, "VMware Tools", "run without: their backups are crash-consistent", "install or start VMware Tools or open-vm-tools")
	d.list(merge, "consolidation", "need consolidation", "consolidate their disks in vSphere")
	d.list(off, "change tracking", "have snapshots, so change tracking cannot be switched on", "remove their snapshots")
	d.list(old, "hardware version", "are older than hardware version 7 and cannot track changes", "upgrade their hardware")
	d.list(disks, "unprotected disks", "are left out of snapshots", "change their mode, or back them up from inside the guest")
}

// list is one finding about several machines.
func (d *doctor) list(names []string, what, state, remedy string) {
	if len(names) == 0 {
		d.add(true, what, "nothing to report", "")
		return
	}
	shown := names
	if len(shown) > 5 {
		shown = append(shown[:5:5], "...")
	}
	d.add(false, what, fmt.Sprintf("%d %s: %s", len(names), state, strings.Join(shown, ", ")), remedy)
}

func (d *doctor) privileges(ctx context.Context, machines int) {
	for _, role := range []struct {
		name string
		need []Privilege
	}{{"backup", BackupPrivileges()}, {"restore", RestorePrivileges()}} {
		missing, err := d.c.MissingPrivileges(ctx, role.need, nil)
		if err != nil {
			d.failed("privileges for "+role.name, err)
			continue
		}
		var hard, soft []string
		for _, m := range missing {
			text := fmt.Sprintf("%s (%s) on %d objects, the first is %s", m.ID, m.Why, len(m.Objects), m.Objects[0])
			if m.Soft {
				soft = append(soft, text)
			} else {
				hard = append(hard, text)
			}
		}
		if role.name == "restore" && len(hard) > 0 && backupOnly(missing, machines) {
			d.add(true, "privileges for "+role.name, "the account is for backups only", "")
			continue
		}
		detail := "all are there"
		if len(soft) > 0 {
			detail = "optional ones are missing: " + strings.Join(soft, "; ")
		}
		if len(hard) > 0 {
			detail = "missing: " + strings.Join(hard, "; ")
		}
		d.add(len(hard) == 0, "privileges for "+role.name, detail,
			"give the account a role with them, on the root folder, propagated: govc role.create vmkeep-"+role.name+" "+strings.Join(RoleIDs(role.need), " "))
	}
}

// backupOnly reports whether an account that misses these privileges for restores has, on none of so many machines, any
// that only restores need.
func backupOnly(missing []MissingPrivilege, machines int) bool {
	others := append(BackupPrivileges(), ProxyPrivileges()...)
	for _, p := range RestorePrivileges() {
		if p.On != OnMachine || slices.ContainsFunc(others, func(o Privilege) bool { return o.ID == p.ID }) {
			continue
		}
		if !slices.ContainsFunc(missing, func(m MissingPrivilege) bool { return m.ID == p.ID && len(m.Objects) == machines }) {
			return false
		}
	}
	return true
}

func (d *doctor) leftovers(ctx context.Context, j *Journal) {
	list, err := d.c.Leftovers(ctx, j)
	if err != nil {
		d.failed("leftovers", err)
		return
	}
	var dead []string
	for _, l := range list {
		if l.Keep != keepRunning {
			dead = append(dead, l.String())
		}
	}
	if len(dead) == 0 {
		d.add(true, "leftovers", "none", "")
		return
	}
	d.add(false, "leftovers", strings.Join(dead, "; "), "run vmkeep recover")
}
