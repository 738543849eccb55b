(* C3, the preference rule: a token that drops expert k and picks up j in one step from p to q had a larger step at j,
   q_j - p_j > q_k - p_k; for every such pair and any K. So under the sign rule tokens leave overloaded experts for
   balanced or underloaded ones, or balanced experts for underloaded ones; with one eps for all experts and equal
   targets they move towards strictly lower load only. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section PreferenceRule.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R) (L : 'I_E -> R).
Implicit Types (p q : 'I_E -> R) (i : 'I_T) (j k : 'I_E).
Local Notation A := (load K scores).
Local Notation swaps := (swaps K scores).

Lemma order_reversed p q i k j :
  beats (biased scores p i) k j -> beats (biased scores q i) j k -> q k - p k < q j - p j.
Proof.
rewrite /beats /biased => before after.
rewrite -(ltr_add2l (scores i j + p j + (scores i k + p k))).
have -> : scores i j + p j + (scores i k + p k) + (q k - p k) =
  scores i j + p j + (scores i k + q k) by ring.
have -> : scores i j + p j + (scores i k + p k) + (q j - p j) =
  scores i k + p k + (scores i j + q j) by ring.
case/orP: before => [before|/andP[/eqP-> kj]].
  case/orP: after => [after|/andP[/eqP-> _]]; first exact: ltr_add.
  by rewrite ltr_add2r.
case/orP: after => [after|/andP[_ jk]]; first by rewrite ltr_add2l.
by move: (ltn_trans kj jk); rewrite ltnn.
Qed.

Theorem preference_rule p q i k j : swaps p q i k j -> q k - p k < q j - p j.
Proof.
by case/and4P=> kp kq jp jq; apply: (@order_reversed p q i); apply: (@topk_beats _ _ K).
Qed.

(* ---- the sign rule *)
Lemma sign_preference u p i k j : 0 < u -> swaps p (sign_step K scores L u p) i k j ->
  Num.sg (L k - (A p k)%:R) < Num.sg (L j - (A p j)%:R).
Proof. by move=> u0 /preference_rule; rewrite /sign_step ![_ + _ * _]addrC !addrK ltr_pmul2l. Qed.

Lemma sg_lt (a b : R) : (Num.sg a < Num.sg b) = (a < 0) && (0 <= b) || (a <= 0) && (0 < b).
Proof.
have n10 : -1 < 0 :> R by rewrite oppr_lt0 ltr01.
case: (sgrP a) => ha; case: (sgrP b) => hb;
  by rewrite ?ltxx ?ltr01 ?n10 ?(lt_trans n10) ?ltr01 ?(lt_gtF n10) ?(lt_gtF ltr01)
             ?(lt_gtF (lt_trans n10 (@ltr01 R))).
Qed.

Lemma sg_bounds (a : R) : -1 <= Num.sg a <= 1.
Proof. by rewrite -ler_norml normr_sg lern1 leq_b1. Qed.

Lemma sg_mono (a b : R) : a <= b -> Num.sg a <= Num.sg b.
Proof.
move=> ab; rewrite leNgt sg_lt; apply/negP=> /orP[/andP[b0 a0]|/andP[b0 a0]].
  by move: (le_lt_trans (le_trans a0 ab) b0); rewrite ltxx.
by move: (lt_le_trans a0 (le_trans ab b0)); rewrite ltxx.
Qed.

(* From {overloaded} to {balanced, underloaded}, or from {balanced} to {underloaded}. *)
Theorem sign_preference_cases u p i k j : 0 < u -> swaps p (sign_step K scores L u p) i k j ->
  (L k < (A p k)%:R) && ((A p j)%:R <= L j) || ((A p k)%:R == L k) && ((A p j)%:R < L j).
Proof.
move=> u0 /(sign_preference u0); rewrite sg_lt subr_lt0 subr_ge0 subr_le0 subr_gt0.
by case: (ltgtP (L k) (A p k)%:R) => //=; rewrite ?eqxx ?orbF // => ? /orP[] // /ltW.
Qed.

(* ---- the proportional rule *)
Theorem proportional_preference eps p i k j : 0 < eps -> (forall k', L k' = L k) ->
  swaps p (proportional_step K scores L eps p) i k j -> (A p j < A p k)%N.
Proof.
move=> eps0 equal /preference_rule; rewrite /proportional_step ![_ + _ * _]addrC !addrK ltr_pmul2l //.
by rewrite (equal j) ltr_add2l ltr_opp2 ltr_nat.
Qed.

End PreferenceRule.
