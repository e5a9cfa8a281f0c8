/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest in one sector, for KVM on hosts that can't boot Linux under it.
 *
 * It goes over the memory from 1 MiB to END without end: one word in each
 * page must be the round's number plus the word's address, and is then
 * written for the next round. The first serial line gets a byte per round,
 * 'a' to 'z' in turn, and '!' for each wrong word.
 */
#define START   0x100000
#define END     0x2000000
#define SERIAL  0x3f8

        .code16
        .text
        .globl _start
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        in      $0x92, %al              /* A20 */
        or      $2, %al
        out     %al, $0x92
        lgdtl   gdt_pointer
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $8, $protected

        .code32
protected:
        mov     $16, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %esp
        mov     $SERIAL, %dx
        xor     %ecx, %ecx              /* round */

        mov     $START, %ebx
clear:
        mov     %ebx, (%ebx)
        add     $4096, %ebx
        cmp     $END, %ebx
        jb      clear

round:
        mov     $START, %ebx
word:
        lea     (%ebx, %ecx), %eax
        cmp     %eax, (%ebx)
        je      good
        mov     $'!', %al
        out     %al, %dx
good:
        lea     1(%ebx, %ecx), %eax
        mov     %eax, (%ebx)
        add     $4096, %ebx
        cmp     $END, %ebx
        jb      word

        push    %edx
        mov     %ecx, %eax
        xor     %edx, %edx
        mov     $26, %ebx
        div     %ebx
        lea     'a'(%edx), %eax
        pop     %edx
        out     %al, %dx
        inc     %ecx
        jmp     round

        .p2align 3
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff
        .quad   0x00cf92000000ffff
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        .org    510
        .word   0xaa55
