# A guest that tells whether KVM runs what every x86-64 kernel needs: a ROM image of our own.
#
# It goes from the reset vector to 64-bit mode at privilege level 0 with paging, takes an exception
# through an IDT, and counts to 2^26 there. On hardware virtualisation that takes some 30 ms; a KVM
# that has to emulate such code needs minutes, or never gets that far. Then it writes 0x2a to the
# port of QEMU's isa-debug-exit, and QEMU ends with status 0x2a << 1 | 1 = 85.
#
# Built by `python3 tests/tools/build_probe.py`; tests/unit/kvm/test_probe.py compares the result.
# Mode switches are those of the AMD64 Architecture Programmer's Manual, volume 2, chapter 14.

        .set    PML4, 0x10000           # page tables: one PML4, one PDPT, four PDs of 2 MiB pages
        .set    PDPT, 0x11000
        .set    PD, 0x12000
        .set    IDT, 0x17000
        .set    STACK, 0x20000
        .set    ROM, 0xffff0000         # the image is 64 KiB and ends at 4 GiB
        .set    EXIT_PORT, 0xf4
        .set    ROUNDS, 1 << 26

        .code16
        .org    0
start:
        cli
        lgdtl   %cs:gdt_pointer
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $0x08, $(ROM + protected)

        .code32
protected:
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $STACK, %esp
        cld
        mov     $PML4, %edi             # clear the tables and the IDT
        xor     %eax, %eax
        mov     $(0x8000 / 4), %ecx
        rep stosl
        movl    $(PDPT + 3), PML4
        mov     $PDPT, %edi             # four PDs, each of 1 GiB
        mov     $(PD + 3), %eax
        mov     $4, %ecx
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x1000, %eax
        loop    1b
        mov     $PD, %edi               # 2,048 pages of 2 MiB: present, writable, large
        mov     $0x83, %eax
        mov     $2048, %ecx
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x200000, %eax
        loop    1b
        mov     %cr4, %eax              # PAE, then the tables, then long mode, then paging
        or      $0x20, %eax
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx       # EFER.LME
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        ljmp    $0x18, $(ROM + long_mode)

        .code64
long_mode:
        mov     $(ROM + on_breakpoint), %eax    # gate 3 of the IDT: a 64-bit interrupt gate
        mov     %ax, IDT + 3 * 16
        movw    $0x18, IDT + 3 * 16 + 2
        movw    $0x8e00, IDT + 3 * 16 + 4
        shr     $16, %eax
        mov     %ax, IDT + 3 * 16 + 6
        mov     $(ROM + idt_pointer), %eax
        lidt    (%rax)
        xor     %ebx, %ebx
        int3
        cmp     $0x2a, %ebx
        jne     stay
        mov     $ROUNDS, %ecx
1:      dec     %ecx
        jnz     1b
        mov     %ebx, %eax
        out     %al, $EXIT_PORT
stay:
        hlt
        jmp     stay
on_breakpoint:
        mov     $0x2a, %ebx
        iretq

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      # 0x08: 32-bit code
        .quad   0x00cf93000000ffff      # 0x10: data
        .quad   0x00af9b000000ffff      # 0x18: 64-bit code
gdt_pointer:
        .word   . - gdt - 1
        .long   ROM + gdt
idt_pointer:
        .word   4 * 16 - 1
        .quad   IDT

        .code16
        .org    0xfff0
        jmp     start                   # the reset vector
        .org    0x10000
