/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest in one sector that is all serial lines.
 *
 * The first line gets numbered lines as lines.c prints them, without pause;
 * on the second one, with its FIFO on, what comes in goes out again.
 */
#define LINES   0x3f8
#define ECHO    0x2f8

#define DATA    0
#define FCR     2
#define LSR     5
#define LSR_DR   0x01
#define LSR_THRE 0x20

        .code16
        .text
        .globl _start
_start:
        cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp
        mov     $(ECHO + FCR), %dx
        mov     $0xc7, %al              /* FIFO on and empty, level 14 */
        out     %al, %dx

next_line:
        mov     $number, %si
        mov     $9, %cx
1:      lodsb
        call    put
        loop    1b

        mov     first_letter, %bl
        mov     $40, %cx
1:      mov     %bl, %al
        call    put
        call    next_letter
        loop    1b
        mov     $'\n', %al
        call    put
1:      loop    1b                      /* some time for QEMU's main loop */

        mov     first_letter, %bl
        call    next_letter
        mov     %bl, first_letter
        mov     $(number + 7), %di
1:      incb    (%di)
        cmpb    $'9', (%di)
        jbe     next_line
        movb    $'0', (%di)
        dec     %di
        jmp     1b

next_letter:
        inc     %bl
        cmp     $'z', %bl
        jbe     1f
        mov     $'a', %bl
1:      ret

/* Writes %al to the first line, and looks after the second meanwhile */
put:
        push    %ax
1:      call    echo
        mov     $(LINES + LSR), %dx
        in      %dx, %al
        test    $LSR_THRE, %al
        jz      1b
        pop     %ax
        mov     $(LINES + DATA), %dx
        out     %al, %dx
        ret

echo:
        mov     $(ECHO + LSR), %dx
        in      %dx, %al
        test    $LSR_DR, %al
        jz      2f
        mov     $(ECHO + DATA), %dx
        in      %dx, %al
        push    %ax
        mov     $(ECHO + LSR), %dx
1:      in      %dx, %al
        test    $LSR_THRE, %al
        jz      1b
        pop     %ax
        mov     $(ECHO + DATA), %dx
        out     %al, %dx
2:      ret

number:
        .ascii  "00000000 "
first_letter:
        .byte   'a'

        .org    510
        .word   0xaa55
