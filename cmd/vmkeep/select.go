package main

import (
	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/plugin"
)

// selection adds the flags that pick machines. The arguments of the command are names.
func selection(cmd *cobra.Command) *plugin.Selection {
	s := new(plugin.Selection)
	f := cmd.Flags()
	f.StringSliceVar(&s.Folders, "folder", nil, "machines in these inventory folders (globs)")
	f.StringSliceVar(&s.Hosts, "esxi", nil, "machines on these ESXi hosts (globs)")
	f.StringSliceVar(&s.Clusters, "cluster", nil, "machines in these clusters (globs)")
	f.StringSliceVar(&s.ResourcePools, "pool", nil, "machines in these resource pools (globs)")
	f.StringSliceVar(&s.Datastores, "on-datastore", nil, "machines with disks on these datastores (globs)")
	f.StringSliceVar(&s.Tags, "vsphere-tag", nil, "machines with these vSphere tags, \"category:tag\" or \"tag\"")
	f.StringSliceVar(&s.Attributes, "attribute", nil, "machines with these custom attributes, \"name=value\"")
	f.StringSliceVar(&s.PowerStates, "power", nil, "machines in these states: poweredOn, poweredOff, suspended")
	f.StringSliceVar(&s.Exclude, "exclude", nil, "but not these machines (names, paths, globs)")
	f.BoolVar(&s.Templates, "templates", false, "templates too")
	return s
}

// everything reports whether the selection picks all machines because nothing was said.
func everything(s plugin.Selection) bool {
	return len(s.Names)+len(s.Folders)+len(s.Hosts)+len(s.Clusters)+len(s.ResourcePools)+len(s.Datastores)+len(s.Tags)+len(s.Attributes)+len(s.PowerStates) == 0
}
