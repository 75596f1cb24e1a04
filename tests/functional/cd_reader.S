/* Boots from a CD and reads it for ever: sector 21 of the medium, a line of text, goes to the
 * serial port about four times a second; "none" while the drive gives nothing. By the firmware's own
 * driver, so that it reads whatever drive the machine has. */
        .code16
        .globl  start
start:  cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        sti
        cld
        mov     %dl, drive
again:  mov     $0x42, %ah
        mov     drive, %dl
        mov     $packet, %si
        movw    $1, count
        int     $0x13
        mov     $none, %si
        jc      say
        mov     $0x9000, %si
say:    lodsb
        test    %al, %al
        jz      rest
        mov     %al, %bl
wait:   mov     $0x3fd, %dx
        in      %dx, %al
        test    $0x20, %al
        jz      wait
        mov     %bl, %al
        mov     $0x3f8, %dx
        out     %al, %dx
        jmp     say
rest:   mov     $0x86, %ah
        mov     $3, %cx
        mov     $0xd090, %dx
        int     $0x15
        jmp     again
none:   .asciz  "none\n"
drive:  .byte   0
        .balign 4
packet: .byte   16, 0
count:  .word   1
        .word   0x9000, 0
        .quad   21
