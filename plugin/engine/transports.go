package engine

import (
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere"
)

func (c *connections) transports(vc *vsphere.Client) []vddk.Transport { return nil }
