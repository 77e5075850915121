"""The buses of a host: PCI devices, their IOMMU groups, interrupts."""
